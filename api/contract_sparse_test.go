package api_test

import "net/http"

// contractSparse has an answer of every status from requests for parts, for
// checksums, and with digests.
func contractSparse(c *contract) {
	const data, checksum = "/v1/images/{image}/data", "/v1/images/{image}/checksum"
	for _, name := range []string{"vm.qcow2", "packed.qcow2", "disk.raw"} {
		c.check(200, "GET", data, "?only=data", "image", name)
		c.check(200, "GET", data, "?only=data&offset=4096&length=8192", "image", name, "Accept", "multipart/byteranges")
		for _, algorithm := range []string{"sha256-blocks", "blake3-blocks", "sha256", "blake3"} {
			c.check(200, "GET", checksum, "?algorithm="+algorithm, "image", name)
		}
		c.check(200, "GET", checksum, "?block_size=65536&offset=4096&length=4096", "image", name, "Accept", "application/x-ndjson")
	}
	c.check(200, "GET", data, "?since=first", "image", "vm.qcow2")
	c.check(404, "GET", data, "?since=other", "image", "vm.qcow2")
	c.check(404, "GET", data, "?dirty=other", "image", "vm.qcow2")
	c.check(422, "GET", data, "?since=first", "image", "disk.raw")
	c.check(422, "GET", data, "?dirty=any", "image", "disk.raw")
	c.check(406, "GET", data, "?only=data", "image", "disk.raw", "Accept", "application/octet-stream")
	for _, query := range []string{"?only=zeros", "?only=data&since=first", "?offset=0", "?only=data&offset=-1", "?only=data&length=0", "?only=data&offset=99999999", "?only=data&length=99999999"} {
		c.check(400, "GET", data, query, "image", "disk.raw")
	}
	c.check(400, "GET", data, "?only=data", "image", "disk.raw", "Range", "bytes=0-1")
	c.check(400, "GET", data, "?only=data&offset=1", "image", "aligned.fake")
	etag := c.check(200, "GET", checksum, "", "image", "disk.raw").header.Get("Etag")
	c.check(304, "GET", checksum, "", "image", "disk.raw", "If-None-Match", etag)
	c.check(304, "GET", data, "?only=data", "image", "disk.raw", "If-None-Match", etag)
	c.check(412, "GET", checksum, "", "image", "disk.raw", "If-Match", `"other"`)
	c.check(412, "GET", data, "?only=data", "image", "disk.raw", "If-Match", `"other"`)
	for _, query := range []string{"?algorithm=md5", "?block_size=1", "?block_size=100000", "?algorithm=sha256&block_size=65536", "?offset=99999999", "?x=1"} {
		c.check(400, "GET", checksum, query, "image", "disk.raw")
	}
	c.check(400, "GET", checksum, "?algorithm=blake3", "image", "disk.raw", "Accept", "application/x-ndjson")
	for status, name := range map[int]string{400: "-", 404: "nothing.raw", 409: "busy.fake", 422: "corrupt.qcow2", 500: "io.fake"} {
		c.check(status, "GET", checksum, "", "image", name)
	}
	want := []string{"image", "disk.raw", "Want-Content-Digest", "sha-512=3"}
	for status, more := range map[int][]string{http.StatusOK: nil, http.StatusPartialContent: {"Range", "bytes=0-9"}} {
		if a := c.check(status, "GET", data, "", append(want, more...)...); a.header.Get("Content-Digest") == "" {
			c.t.Errorf("status %d without a digest", status)
		}
	}
	digest := "sha-256=:" + "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=" + ":" // of nothing
	c.check(400, "PUT", data, "", "image", "work.qcow2", "Content-Range", "bytes 0-3/*", "body", "test", "Content-Digest", digest)
	c.check(400, "PUT", data, "", "image", "work.qcow2", "Content-Range", "bytes 0-3/*", "body", "test", "Content-Digest", "md5=:AA==:")
	c.check(204, "PUT", data, "", "image", "work.qcow2", "Content-Range", "bytes 0-3/*", "body", "test",
		"Content-Digest", "sha-256=:n4bQgYhMfWWaL+qgxVrQFaO/TxsrC4Is0V1sFbDwCgg=:")
}
