package api_test

import (
	"context"
	"fmt"
	"strings"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/storagetest"
)

// A fullMapper has data that is not to be overwritten in place, and no room for
// anything else, but for one contiguous block, which cannot be filled.
type fullMapper struct {
	fakeMapper
	node *storage.Node
	left int
}

func newFullMapper() *fullMapper {
	file := storagetest.NewMemFileWith(storagetest.MemOptions{
		Size: 2 * mib,
		Hook: func(_ context.Context, op *storagetest.Op) error {
			if op.Kind == storagetest.OpWrite {
				return storage.ErrNoSpace
			}
			return nil
		},
	})
	m := &fullMapper{node: storage.NewNode("full.fake", file, storage.NodeOptions{}), left: 1}
	m.fakeMapper = fakeMapper{size: mib, unit: cluster, at: func(off int64) (storage.Mapping, error) {
		return storage.Mapping{Status: storage.Local | storage.Alloc | storage.OffsetValid, Node: m.node, NodeOffset: off}, nil
	}}
	return m
}

func (m *fullMapper) StartWriting(context.Context) error { return nil }
func (m *fullMapper) Units() storage.Units               { return storage.Units{Alloc: cluster, Data: cluster} }

func (m *fullMapper) Alloc(_ context.Context, _ int64, opt storage.AllocOptions) (storage.Blocks, error) {
	if m.left == 0 || !opt.Contiguous {
		return storage.Blocks{}, fmt.Errorf("fake: %w", storage.ErrNoSpace)
	}
	m.left--
	return storage.Blocks{Node: m.node, Offset: mib, Length: cluster}, nil
}

func (m *fullMapper) Free(context.Context, storage.Blocks) error { return nil }
func (m *fullMapper) Flush(context.Context) error                { return nil }

func (m *fullMapper) CheckWrite(context.Context, *storage.Node, int64, int64) error { return nil }

func (m *fullMapper) Update(context.Context, int64, int64, storage.Target) error {
	return fmt.Errorf("fake: %w", storage.ErrNoSpace)
}

func (m *fullMapper) Resize(context.Context, int64, storage.ResizeOptions) error {
	return fmt.Errorf("fake: %w", storage.ErrNoSpace)
}

// unusable are images that cannot be used, by the status that says so.
func unusable() map[int]string {
	return map[int]string{400: "-", 404: "nothing.qcow2", 409: "busy.fake", 422: "corrupt.qcow2", 500: "io.fake"}
}

// long is a body that nobody reads.
var long = strings.Repeat(" ", 5<<20)

// contractWrites has an answer of every status from what writes.
func contractWrites(c *contract) {
	const json = "Content-Type"
	const image, data = "/v1/images/{image}", "/v1/images/{image}/data"
	create := func(status int, body string, pairs ...string) {
		c.t.Helper()
		c.check(status, "POST", "/v1/images", "", append(pairs, "body", body, json, "application/json")...)
	}
	create(201, `{"name":"new.raw","format":"raw","size":4096}`)
	create(201, `{"name":"new.qcow2","format":"qcow2","size":4194304}`)
	create(201, `{"name":"over.qcow2","format":"qcow2","backing":"base.raw"}`)
	create(400, `{"name":"new.raw","format":"vmdk","size":4096}`)
	create(409, `{"name":"new.raw","format":"raw","size":4096}`)
	create(413, long)
	c.check(415, "POST", "/v1/images", "", "body", "{}")
	create(422, `{"name":"x.qcow2","format":"qcow2","backing":"nothing.raw"}`)
	create(500, `{"name":"x.qcow2","format":"qcow2","backing":"io.fake"}`)
	create(507, `{"name":"full.raw","format":"raw","size":4096}`)

	for _, call := range []struct {
		method, path, media, good string
		status                    int
	}{
		{"PATCH", image, "application/merge-patch+json", `{"size":8388608}`, 200},
		{"POST", image + "/zero", "application/json", `{"offset":0,"length":65536}`, 204},
		{"POST", image + "/trim", "application/json", `{"offset":0,"length":65536}`, 204},
		{"POST", image + "/flush", "application/json", `{}`, 204},
		{"POST", image + "/check", "application/json", `{}`, 200},
		{"POST", image + "/mappings", "application/json", `{"updates":[{"offset":0,"length":65536,"target":{"kind":"zero"}}]}`, 200},
	} {
		good := []string{json, call.media, "body", call.good}
		c.check(call.status, call.method, call.path, "", append(good, "image", "work.qcow2")...)
		for status, name := range unusable() {
			c.check(status, call.method, call.path, "", append(good, "image", name)...)
		}
		c.check(400, call.method, call.path, "", json, call.media, "body", `{"x":1}`, "image", "work.qcow2")
		c.check(413, call.method, call.path, "", json, call.media, "body", long, "image", "work.qcow2")
		c.check(415, call.method, call.path, "", "body", call.good, "image", "work.qcow2")
		if strings.HasSuffix(call.path, "flush") {
			continue
		}
		c.check(507, call.method, call.path, "", append(good, "image", "full.fake")...)
		if !strings.HasSuffix(call.path, "check") {
			c.check(412, call.method, call.path, "", append(good, "image", "work.qcow2", "If-Match", `"other"`)...)
		}
	}
	c.check(200, "PATCH", image, "", json, "application/json", "body", `{}`, "image", "work.qcow2")

	body := []string{"body", "12345", "Content-Range", "bytes 0-4/*"}
	c.check(204, "PUT", data, "", append(body, "image", "work.qcow2")...)
	c.check(204, "PUT", data, "?flush=true", append(body, "image", "new.raw")...)
	for status, name := range unusable() {
		c.check(status, "PUT", data, "", append(body, "image", name)...)
	}
	c.check(400, "PUT", data, "", "body", "12345", "Content-Range", "bytes 0-5/*", "image", "new.raw")
	c.check(400, "PUT", data, "", "body", "12345", "Content-Range", "bytes 9999995-9999999/*", "image", "new.raw")
	c.check(409, "PUT", data, "", append(body, "image", "base.raw")...)
	c.check(412, "PUT", data, "", append(body, "image", "new.raw", "If-Match", `"other"`)...)
	c.check(415, "PUT", data, "", append(body, "image", "new.raw", "Content-Encoding", "gzip")...)
	c.check(507, "PUT", data, "", append(body, "image", "full.fake")...)

	c.check(204, "DELETE", image, "", "image", "over.qcow2")
	c.check(400, "DELETE", image, "", "image", "-")
	c.check(404, "DELETE", image, "", "image", "over.qcow2")
	c.check(409, "DELETE", image, "", "image", "base.raw")
	c.check(412, "DELETE", image, "", "image", "new.raw", "If-Match", `"other"`)
	// Without a condition, what cannot be opened can be deleted.
	c.check(422, "DELETE", image, "", "image", "corrupt.qcow2", "If-Match", "*")
	c.check(500, "DELETE", image, "", "image", "io.fake", "If-Match", "*")
}

// contractAllocations likewise, from allocations.
func contractAllocations(c *contract) {
	const all, one = "/v1/images/{image}/allocations", "/v1/images/{image}/allocations/{allocation}"
	good := []string{"Content-Type", "application/json", "body", `{"length":65536}`}
	var ids []string
	for _, name := range []string{"work.qcow2", "full.fake"} {
		at := c.check(201, "POST", all, "", "image", name, "Content-Type", "application/json", "body", `{"length":65536,"contiguous":true}`).header.Get("Location")
		ids = append(ids, at[strings.LastIndexByte(at, '/')+1:])
	}
	for status, name := range unusable() {
		c.check(status, "POST", all, "", append(good, "image", name)...)
		c.check(status, "GET", all, "", "image", name)
		c.check(status, "GET", one, "", "image", name, "allocation", "x")
		c.check(status, "DELETE", one, "", "image", name, "allocation", "x")
		c.check(status, "PUT", one+"/data", "", "image", name, "allocation", "x")
	}
	c.check(400, "POST", all, "", "image", "work.qcow2", "Content-Type", "application/json", "body", `{}`)
	c.check(413, "POST", all, "", "image", "work.qcow2", "Content-Type", "application/json", "body", long)
	c.check(415, "POST", all, "", "image", "work.qcow2", "body", `{"length":65536}`)
	c.check(422, "POST", all, "", append(good, "image", "disk.raw")...)
	c.check(507, "POST", all, "", append(good, "image", "full.fake")...)
	c.check(200, "GET", all, "", "image", "work.qcow2")
	c.check(200, "GET", one, "", "image", "work.qcow2", "allocation", ids[0])
	c.check(404, "GET", one, "", "image", "work.qcow2", "allocation", "x")

	whole := strings.Repeat("x", cluster)
	c.check(204, "PUT", one+"/data", "", "image", "work.qcow2", "allocation", ids[0], "body", whole)
	c.check(204, "PUT", one+"/data", "", "image", "work.qcow2", "allocation", ids[0], "body", "x", "Content-Range", "bytes 5-5/65536")
	c.check(400, "PUT", one+"/data", "", "image", "work.qcow2", "allocation", ids[0], "body", "x")
	c.check(400, "PUT", one+"/data", "", "image", "work.qcow2", "allocation", ids[0], "body", "x", "Content-Range", "bytes 65536-65536/*")
	c.check(404, "PUT", one+"/data", "", "image", "work.qcow2", "allocation", "x", "body", whole)
	c.check(415, "PUT", one+"/data", "", "image", "work.qcow2", "allocation", ids[0], "body", whole, "Content-Encoding", "br")
	c.check(507, "PUT", one+"/data", "", "image", "full.fake", "allocation", ids[1], "body", whole)
	update := fmt.Sprintf(`{"updates":[{"offset":0,"length":65536,"target":{"kind":"data","allocation":%q,"allocation_offset":0}}]}`, ids[0])
	mappings := func(status int) {
		c.t.Helper()
		c.check(status, "POST", "/v1/images/{image}/mappings", "", "image", "work.qcow2", "Content-Type", "application/json", "body", update)
	}
	mappings(200)
	mappings(409)
	c.check(409, "PUT", one+"/data", "", "image", "work.qcow2", "allocation", ids[0], "body", whole)
	for i, name := range []string{"work.qcow2", "full.fake"} {
		c.check(204, "DELETE", one, "", "image", name, "allocation", ids[i])
		c.check(404, "DELETE", one, "", "image", name, "allocation", ids[i])
	}
}
