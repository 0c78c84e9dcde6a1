package api_test

import (
	"context"
	"fmt"
	"strings"

	"github.com/extentd/extentd/storage"
)

// full.fake has a bitmap, and no room for another.

func (m *fullMapper) Bitmaps(context.Context) ([]storage.BitmapInfo, error) {
	return []storage.BitmapInfo{{Name: "there", Granularity: 65536}}, nil
}

func (m *fullMapper) ChangeBitmaps(context.Context, []storage.BitmapChange) error {
	return fmt.Errorf("fake: %w", storage.ErrNoSpace)
}

func (m *fullMapper) Dirty(_ context.Context, _ string, off, n int64, visit func(off, n int64, dirty bool) error) error {
	if n == 0 {
		return nil
	}
	return visit(off, n, false)
}

// contractBitmaps has an answer of every status from what is done with bitmaps.
func contractBitmaps(c *contract) {
	const all, one = "/v1/images/{image}/bitmaps", "/v1/images/{image}/bitmaps/{bitmap}"
	const work, full = "work.qcow2", "full.fake"
	for _, call := range []struct {
		method, path, good string
		status             int
	}{
		{"POST", all, `{"name":"there"}`, 201},
		{"GET", all, "", 200},
		{"GET", one, "", 200},
		{"PATCH", one, `{"enabled":false}`, 200},
		{"POST", one + "/merge", `{"from":["there"]}`, 200},
		{"POST", one + "/clear", `{}`, 200},
		{"DELETE", one, "", 204},
	} {
		with := func(image string, more ...string) []string { return append(more, "image", image, "bitmap", "there") }
		good := func(image string) []string {
			if call.good == "" {
				return with(image)
			}
			return with(image, "Content-Type", mediaOf(call.method), "body", call.good)
		}
		c.check(call.status, call.method, call.path, "", good(work)...)
		for status, name := range unusable() {
			c.check(status, call.method, call.path, "", good(name)...)
		}
		c.check(422, call.method, call.path, "", good("disk.raw")...)
		if call.good == "" {
			c.check(400, call.method, call.path, "?x=1", good(work)...)
		} else {
			c.check(400, call.method, call.path, "", with(work, "Content-Type", mediaOf(call.method), "body", `{"x":1}`)...)
			c.check(413, call.method, call.path, "", with(work, "Content-Type", mediaOf(call.method), "body", long)...)
			c.check(415, call.method, call.path, "", with(work, "body", call.good)...)
		}
		if call.method == "GET" || call.path == all {
			continue
		}
		c.check(507, call.method, call.path, "", good(full)...)
	}
	c.check(507, "POST", all, "", "image", full, "Content-Type", "application/json", "body", `{"name":"new"}`)
	c.check(404, "GET", one, "", "image", work, "bitmap", "there")
	c.check(404, "DELETE", one, "", "image", work, "bitmap", "there")
	c.check(200, "GET", all, "", "image", "vm.qcow2")
	c.check(200, "GET", one, "", "image", "vm.qcow2", "bitmap", "backup")
	c.check(200, "PATCH", one, "", "image", "vm.qcow2", "bitmap", "backup", "Content-Type", "application/merge-patch+json", "body", `{}`)

	const extents = "/v1/images/{image}/extents"
	c.check(200, "GET", extents, "?dirty=backup", "image", "vm.qcow2")
	c.check(200, "GET", extents, "?dirty=backup", "image", "vm.qcow2", "Accept", "application/x-ndjson")
	c.check(304, "GET", extents, "?dirty=backup", "image", "vm.qcow2", "If-None-Match", "*")
	c.check(400, "GET", extents, "?dirty=backup&volunteer=true", "image", "vm.qcow2")
	c.check(404, "GET", extents, "?dirty=none", "image", "vm.qcow2")
	c.check(422, "GET", extents, "?dirty=none", "image", "disk.raw")
	contractBitmapChanges(c)
}

func contractBitmapChanges(c *contract) {
	const all = "/v1/bitmaps"
	batch := func(image, operation, bitmap string) string {
		return fmt.Sprintf(`{"changes":[{"image":"work.qcow2","operation":"create","bitmap":"first"},{"image":%q,"operation":%q,"bitmap":%q}]}`, image, operation, bitmap)
	}
	send := func(status int, body string, more ...string) answer {
		c.t.Helper()
		return c.check(status, "POST", all, "", append(more, "body", body, "Content-Type", "application/json")...)
	}
	send(204, batch("vm.qcow2", "create", "x"))
	send(409, batch("vm.qcow2", "create", "y")).problem(c.t, 409, "exists")
	send(204, `{"changes":[{"image":"work.qcow2","operation":"delete","bitmap":"first"}]}`)
	for status, name := range unusable() {
		send(status, batch(name, "clear", "x"))
	}
	send(422, batch("disk.raw", "clear", "x"))
	send(404, batch("vm.qcow2", "delete", "none"))
	for _, body := range []string{
		`{}`, `{"changes":[]}`, batch("vm.qcow2", "fly", "x"), batch("vm.qcow2", "create", "a/b"), batch("vm.qcow2", "create", ""), batch("vm.qcow2", "merge", "x"),
		`{"changes":[{"image":"vm.qcow2","operation":"delete","bitmap":"x","granularity":65536}]}`,
		`{"changes":[{"image":"vm.qcow2","operation":"disable","bitmap":"x","enabled":false}]}`,
		`{"changes":[{"image":"vm.qcow2","operation":"clear","bitmap":"x","from":["x"]}]}`,
		`{"changes":[{"image":"vm.qcow2","operation":"create","bitmap":"z","granularity":1000}]}`,
		`{"changes":[` + strings.Repeat(`{"image":"vm.qcow2","operation":"clear","bitmap":"x"},`, 1000) + `{"image":"vm.qcow2","operation":"clear","bitmap":"x"}]}`,
	} {
		p := send(400, body).problem(c.t, 400, "invalid-request")
		if strings.Contains(body, "operation") && !strings.HasPrefix((*p.Errors)[0].Field, "changes") {
			c.t.Errorf("%.200s: %+v", body, *p.Errors)
		}
	}
	send(413, long)
	c.check(415, "POST", all, "", "body", batch("vm.qcow2", "create", "x"))
	send(507, `{"changes":[{"image":"full.fake","operation":"create","bitmap":"first"}]}`)
}
