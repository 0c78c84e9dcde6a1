import createClient, { type Client } from "openapi-fetch";
import type { components, paths } from "./schema.js";

export type Extentd = Client<paths>;
export type Extent = components["schemas"]["Extent"];
export type ImageEntry = components["schemas"]["ImageEntry"];
export type Problem = components["schemas"]["Problem"];

export function connect(url: string, token?: string): Extentd {
  return createClient<paths>({
    baseUrl: url,
    headers: token ? { Authorization: `Bearer ${token}` } : {},
  });
}

export class Refused extends Error {
  constructor(readonly problem: Problem) {
    super(`${problem.title}: ${problem.detail} (request ${problem.request_id ?? "unknown"})`);
  }
}

// The images, a page at a time.
export async function* list(extentd: Extentd): AsyncGenerator<ImageEntry> {
  let cursor: string | undefined;
  do {
    const { data, error } = await extentd.GET("/v1/images", {
      params: { query: cursor === undefined ? {} : { cursor } },
    });
    if (error) throw new Refused(error);
    yield* data.images;
    cursor = data.next;
  } while (cursor !== undefined);
}

// The whole map in pages, all of them of one generation: if the map changes
// between two, the server refuses the second with precondition-failed.
export async function* map(extentd: Extentd, image: string, limit = 1000): AsyncGenerator<Extent> {
  let offset = 0;
  let etag = "";
  for (;;) {
    const { data, error, response } = await extentd.GET("/v1/images/{image}/extents", {
      params: {
        path: { image },
        query: { offset, limit },
        header: etag ? { "If-Match": etag } : {},
      },
      headers: { Accept: "application/json" },
    });
    if (error) throw new Refused(error);
    if (typeof data === "string") throw new Error("not the JSON that was asked for");
    yield* data.extents;
    if (data.next === undefined) return;
    offset = data.next;
    etag ||= response.headers.get("ETag") ?? "";
  }
}

// The map as it is walked, one extent a line. A map that cannot be read to its
// end makes the loop throw.
export async function* streamMap(extentd: Extentd, image: string): AsyncGenerator<Extent> {
  const { data, error } = await extentd.GET("/v1/images/{image}/extents", {
    params: { path: { image } },
    headers: { Accept: "application/x-ndjson" },
    parseAs: "stream",
  });
  if (error) throw new Refused(error);
  const decoder = new TextDecoder();
  let rest = "";
  for await (const chunk of data ?? []) {
    const lines = (rest + decoder.decode(chunk, { stream: true })).split("\n");
    rest = lines.pop() ?? "";
    for (const line of lines) yield JSON.parse(line) as Extent;
  }
}

// A range, as a stream: nothing is held but the chunk that is being used.
export async function read(
  extentd: Extentd, image: string, offset: number, length: number,
): Promise<ReadableStream<Uint8Array>> {
  const { data, error, response } = await extentd.GET("/v1/images/{image}/data", {
    params: {
      path: { image },
      header: { Range: `bytes=${offset}-${offset + length - 1}` },
    },
    parseAs: "stream",
  });
  if (error) throw new Refused(error);
  if (response.status !== 206 || data === null) throw new Error("not a part of the image");
  return data;
}

// Bytes at an offset; on disk when it returns. The answer is the new ETag.
export async function write(
  extentd: Extentd, image: string, offset: number, bytes: Uint8Array<ArrayBuffer> | Blob,
): Promise<string | null> {
  const length = bytes instanceof Blob ? bytes.size : bytes.byteLength;
  const { error, response } = await extentd.PUT("/v1/images/{image}/data", {
    params: {
      path: { image },
      query: { flush: true },
      header: { "Content-Range": `bytes ${offset}-${offset + length - 1}/*` },
    },
    body: bytes,
    bodySerializer: (body) => body, // as it is
    headers: { "Content-Type": "application/octet-stream" },
  });
  if (error) throw new Refused(error);
  return response.headers.get("ETag");
}

// Blocks that nobody sees are reserved, filled in parallel, and appear at an
// offset all at once. The length of the bytes is a multiple of the cluster.
export async function publish(
  extentd: Extentd, image: string, offset: number, bytes: Uint8Array<ArrayBuffer>,
): Promise<void> {
  const length = bytes.byteLength;
  const { data: allocation, error } = await extentd.POST("/v1/images/{image}/allocations", {
    params: { path: { image } },
    body: { length },
  });
  if (error) throw new Refused(error);
  const path = { image, allocation: allocation.id };
  try {
    const piece = 1024 * 1024;
    const fill = async (from: number) => {
      const part = bytes.subarray(from, Math.min(from + piece, length));
      const { error } = await extentd.PUT("/v1/images/{image}/allocations/{allocation}/data", {
        params: {
          path,
          header: { "Content-Range": `bytes ${from}-${from + part.byteLength - 1}/${length}` },
        },
        body: part,
        bodySerializer: (body) => body,
        headers: { "Content-Type": "application/octet-stream" },
      });
      if (error) throw new Refused(error);
    };
    await Promise.all(Array.from({ length: Math.ceil(length / piece) }, (_, i) => fill(i * piece)));

    const { error } = await extentd.POST("/v1/images/{image}/mappings", {
      params: { path: { image } },
      body: {
        updates: [{ offset, length, target: { kind: "data", allocation: allocation.id, allocation_offset: 0 } }],
      },
    });
    if (error) throw new Refused(error);
  } finally {
    // What is mapped stays, the rest is freed.
    await extentd.DELETE("/v1/images/{image}/allocations/{allocation}", { params: { path } });
  }
}

// What went wrong, as a program tells it apart.
export function explain(problem: Problem): string {
  switch (problem.type) {
    case "/problems/not-found":
      return "no such image";
    case "/problems/precondition-failed":
      return "somebody else has written to it: read again";
    case "/problems/misaligned":
      return `offset and length must be multiples of ${problem.minimum}`;
    case "/problems/invalid-request":
      return (problem.errors ?? []).map((e) => `${e.field}: ${e.detail}`).join("; ");
    default:
      return `${problem.status} ${problem.title}: ${problem.detail}`;
  }
}
