package api_test

// contractReads has an answer of every status from what reads.
func contractReads(c *contract) {
	c.check(200, "GET", "/v1/images", "")
	c.check(200, "GET", "/v1/images", "?limit=2")
	c.check(400, "GET", "/v1/images", "?limit=0")
	c.check(400, "GET", "/v1/images", "?cursor=!")
	for _, call := range []string{"", "/limits", "/extents", "/data"} {
		path := "/v1/images/{image}" + call
		for _, name := range []string{"vm.qcow2", "packed.qcow2", "disk.raw"} {
			c.check(200, "GET", path, "", "image", name)
		}
		for status, name := range map[int]string{400: "-", 404: "nothing.raw", 409: "busy.fake", 422: "corrupt.qcow2", 500: "io.fake"} {
			c.check(status, "GET", path, "", "image", name)
		}
		c.check(422, "GET", path, "", "image", "orphan.qcow2")
		c.check(400, "GET", path, "?x=1", "image", "disk.raw")
	}
	extents := "/v1/images/{image}/extents"
	etag := c.check(200, "GET", extents, "?one=true&resolve=false&volunteer=true", "image", "vm.qcow2").header.Get("Etag")
	c.check(200, "GET", extents, "?limit=1", "image", "vm.qcow2")
	c.check(200, "GET", extents, "", "image", "vm.qcow2", "Accept", "application/x-ndjson")
	c.check(304, "GET", extents, "", "image", "vm.qcow2", "If-None-Match", etag)
	c.check(412, "GET", extents, "", "image", "vm.qcow2", "If-Match", `"other"`)
	c.check(400, "GET", extents, "?offset=99999999", "image", "vm.qcow2")
	data := "/v1/images/{image}/data"
	etag = c.check(206, "GET", data, "", "image", "vm.qcow2", "Range", "bytes=0-4095").header.Get("Etag")
	c.check(206, "GET", data, "", "image", "vm.qcow2", "Range", "bytes=0-4095,8192-")
	c.check(304, "GET", data, "", "image", "vm.qcow2", "If-None-Match", etag)
	c.check(412, "GET", data, "", "image", "vm.qcow2", "If-Match", `"other"`)
	c.check(416, "GET", data, "", "image", "vm.qcow2", "Range", "bytes=99999999-")
	c.check(400, "GET", data, "", "image", "aligned.fake", "Range", "bytes=1-2")
	c.check(200, "HEAD", data, "", "image", "vm.qcow2")
	c.check(304, "HEAD", data, "", "image", "vm.qcow2", "If-None-Match", etag)
	c.check(412, "HEAD", data, "", "image", "vm.qcow2", "If-Match", `"other"`)
	for status, name := range map[int]string{400: "-", 404: "nothing.raw", 409: "busy.fake", 422: "corrupt.qcow2", 500: "io.fake"} {
		c.check(status, "HEAD", data, "", "image", name)
	}
}
