// node generate.js OPENAPI.YAML SCHEMA.D.TS
//
// What `npx openapi-typescript --default-non-nullable false` writes, with one
// difference: bodies of bytes have the types that fetch sends, and not string.
import { readFile, writeFile } from "node:fs/promises";
import { pathToFileURL } from "node:url";
import openapiTS, { astToString } from "openapi-typescript";
import ts from "typescript";

const [spec, output] = process.argv.slice(2);
const bytes = ts.factory.createUnionTypeNode([
  ts.factory.createTypeReferenceNode("Blob"),
  ts.factory.createTypeReferenceNode("BufferSource"),
]);

const types = await openapiTS(pathToFileURL(spec), {
  defaultNonNullable: false, // a member that has a default need not be given
  transform: (schema) => (schema.format === "binary" ? bytes : undefined),
});
const version = /^ {2}version: (.*)$/m.exec(await readFile(spec, "utf8"))?.[1];
await writeFile(output, `// Generated from openapi.yaml ${version}. Do not edit.\n${astToString(types)}`);
