// main.js URL
//
// Does each of the tasks against a server, and fails if one is not done right.
// EXTENTD_TOKEN is the bearer token, if the server wants one.
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import {
  connect, explain, list, map, publish, read, Refused, streamMap, write,
  type Extent, type Extentd, type Problem,
} from "./tasks.js";

const cluster = 65536;
const size = 16 * 1024 * 1024;
const image = `typescript-${process.pid}.qcow2`;

async function collect<T>(items: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const item of items) all.push(item);
  return all;
}

async function bytes(extentd: Extentd, offset: number, length: number): Promise<Buffer> {
  return Buffer.concat(await collect(await read(extentd, image, offset, length)));
}

function random(length: number): Uint8Array<ArrayBuffer> {
  return new Uint8Array(randomBytes(length));
}

async function refusal(task: Promise<unknown>): Promise<Problem> {
  const reason = await task.then(() => undefined, (reason: unknown) => reason);
  assert(reason instanceof Refused, `refused with ${String(reason)}`);
  return reason.problem;
}

async function tasks(extentd: Extentd): Promise<void> {
  const names = (await collect(list(extentd))).map((entry) => entry.name);
  assert(names.includes(image), `${image} is not listed: ${names.join(" ")}`);

  const written = random(3 * cluster + 100);
  assert.match(await write(extentd, image, 1000, written) ?? "", /^"d-/);
  assert.deepEqual(await bytes(extentd, 1000, written.length), Buffer.from(written));
  await write(extentd, image, size - 5, new Blob(["tail!"]));
  assert.equal((await bytes(extentd, size - 5, 5)).toString(), "tail!");

  const published = random(2 * 1024 * 1024 + cluster);
  await publish(extentd, image, 4 * 1024 * 1024, published);
  assert.deepEqual(await bytes(extentd, 4 * 1024 * 1024, published.length), Buffer.from(published));

  const pages = await collect(map(extentd, image, 2));
  assert.deepEqual(await collect(streamMap(extentd, image)), pages);
  covers(pages);

  let problem = await refusal(collect(map(extentd, "missing.qcow2")));
  assert.deepEqual([problem.status, explain(problem)], [404, "no such image"]);
  problem = await refusal(collect(map(extentd, image, 0)));
  assert.equal(problem.errors?.[0]?.field, "limit");
  assert.match(explain(problem), /^limit: /);
  problem = await refusal(read(extentd, image, 2 * size, 10));
  assert.deepEqual([problem.status, problem.size], [416, size]);
}

// covers tells whether extents lie side by side, and are the whole image.
function covers(extents: Extent[]): void {
  let end = 0;
  for (const extent of extents) {
    assert.equal(extent.offset, end);
    end += extent.length;
  }
  assert.equal(end, size);
  assert(extents.some((extent) => extent.zero) && extents.some((extent) => !extent.zero));
}

const [url] = process.argv.slice(2);
assert(url, "which server?");
const extentd = connect(url, process.env["EXTENTD_TOKEN"]);
const { error } = await extentd.POST("/v1/images", { body: { name: image, format: "qcow2", size } });
if (error) throw new Refused(error);
try {
  await tasks(extentd);
} finally {
  await extentd.DELETE("/v1/images/{image}", { params: { path: { image } } });
}
console.log("all tasks done");
