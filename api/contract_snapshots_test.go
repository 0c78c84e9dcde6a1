package api_test

import (
	"context"
	"fmt"

	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage"
)

// A fullKeeper has a snapshot, and no room to do anything with it.
type fullKeeper struct{}

var errFull = fmt.Errorf("fake: %w", storage.ErrNoSpace)

func (fullKeeper) List(context.Context) ([]service.Snapshot, error) {
	return []service.Snapshot{{ID: "1", Name: "first", ICount: -1}}, nil
}

func (fullKeeper) Create(context.Context, string) (service.Snapshot, error) {
	return service.Snapshot{}, errFull
}
func (fullKeeper) Delete(context.Context, string) error { return errFull }
func (fullKeeper) Revert(context.Context, string) error { return errFull }

func (fullKeeper) Open(context.Context, string, int64) (service.SnapshotMapper, error) {
	return nil, errFull
}

// contractSnapshots has an answer of every status from what is about snapshots.
func contractSnapshots(c *contract) {
	const all, one = "/v1/images/{image}/snapshots", "/v1/images/{image}/snapshots/{snapshot}"
	const extents, data, revert = one + "/extents", one + "/data", one + "/revert"
	json := []string{"Content-Type", "application/json"}
	create := func(status int, image, body string) {
		c.t.Helper()
		c.check(status, "POST", all, "", append(json, "image", image, "body", body)...)
	}
	create(201, "work.qcow2", `{"name":"first"}`)
	create(201, "work.qcow2", `{"name":"second / with ü"}`)
	create(409, "work.qcow2", `{"name":"first"}`)
	for _, body := range []string{`{}`, `{"name":""}`, `{"name":"id:1"}`, `{"name":"a\u0000b"}`, `{"name":1}`, `{"name":"x","size":1}`, `nonsense`} {
		create(400, "work.qcow2", body)
	}
	create(413, "work.qcow2", long)
	create(507, "full.fake", `{"name":"x"}`)
	c.check(415, "POST", all, "", "image", "work.qcow2", "body", `{"name":"x"}`)

	first := []string{"image", "work.qcow2", "snapshot", "first"}
	with := func(more ...string) []string { return append(append([]string(nil), first...), more...) }
	c.check(200, "GET", all, "", "image", "work.qcow2")
	c.check(200, "GET", one, "", first...)
	c.check(200, "GET", one, "", "image", "work.qcow2", "snapshot", "id:2")
	c.check(200, "GET", one, "", "image", "work.qcow2", "snapshot", "second / with ü")
	etag := c.check(200, "GET", extents, "?one=true&resolve=false&volunteer=true", first...).header.Get("Etag")
	c.check(200, "GET", extents, "?limit=1&since=id:2", first...)
	c.check(200, "GET", extents, "", with("Accept", "application/x-ndjson")...)
	c.check(304, "GET", extents, "", with("If-None-Match", etag)...)
	c.check(412, "GET", extents, "?since=id:2", with("If-Match", etag)...)
	c.check(400, "GET", extents, "?since=id:2&volunteer=true", first...)
	c.check(400, "GET", extents, "?since=", first...)
	c.check(404, "GET", extents, "?since=none", first...)
	c.check(200, "GET", "/v1/images/{image}/extents", "?since=first", "image", "work.qcow2")
	c.check(404, "GET", "/v1/images/{image}/extents", "?since=none", "image", "work.qcow2")
	c.check(422, "GET", "/v1/images/{image}/extents", "?since=none", "image", "disk.raw")

	etag = c.check(200, "GET", data, "", first...).header.Get("Etag")
	c.check(200, "GET", data, "?only=data", first...)
	c.check(200, "GET", data, "?since=id:2", first...)
	c.check(206, "GET", data, "", with("Range", "bytes=0-4095")...)
	c.check(206, "GET", data, "", with("Range", "bytes=0-4095,8192-")...)
	c.check(406, "GET", data, "?only=data", with("Accept", "text/plain")...)
	c.check(416, "GET", data, "", with("Range", "bytes=99999999-")...)
	c.check(200, "HEAD", data, "", first...)
	for _, method := range []string{"GET", "HEAD"} {
		c.check(304, method, data, "", with("If-None-Match", etag)...)
		c.check(412, method, data, "", with("If-Match", `"other"`)...)
	}
	c.check(200, "POST", revert, "", with(append(json, "body", `{}`)...)...)
	c.check(412, "POST", revert, "", with(append(json, "body", `{}`, "If-Match", `"other"`)...)...)
	c.check(413, "POST", revert, "", with(append(json, "body", long)...)...)
	c.check(415, "POST", revert, "", with("body", `{}`)...)
	c.check(400, "POST", revert, "", with(append(json, "body", `{"x":1}`)...)...)
	c.check(507, "POST", revert, "", append(json, "body", `{}`, "image", "full.fake", "snapshot", "first")...)
	c.check(507, "DELETE", one, "", "image", "full.fake", "snapshot", "first")
	c.check(412, "DELETE", one, "", with("If-Match", `"other"`)...)
	c.check(204, "DELETE", one, "", "image", "work.qcow2", "snapshot", "second / with ü")
	c.check(204, "DELETE", one, "", first...)

	for status, image := range unusable() {
		c.check(status, "GET", all, "", "image", image)
		create(status, image, `{"name":"x"}`)
		for _, method := range []string{"GET", "DELETE"} {
			c.check(status, method, one, "", "image", image, "snapshot", "x")
		}
		c.check(status, "POST", revert, "", append(json, "body", `{}`, "image", image, "snapshot", "x")...)
		c.check(status, "GET", extents, "", "image", image, "snapshot", "x")
		c.check(status, "GET", data, "", "image", image, "snapshot", "x")
		c.check(status, "HEAD", data, "", "image", image, "snapshot", "x")
	}
	c.check(404, "DELETE", one, "", first...)
	c.check(400, "DELETE", one, "?x=1", first...)
}
