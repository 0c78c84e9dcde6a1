package api_test

import (
	"testing"

	"github.com/extentd/extentd/api"
	"github.com/extentd/extentd/service"
)

// A server that is not to write refuses all that does, and serves the rest.
func TestReadOnly(t *testing.T) {
	f := startWith(t, api.Options{}, service.Options{ReadOnly: true}, nil)
	f.disks(t)
	for _, name := range []string{"disk.raw", "over.qcow2"} {
		path := "/v1/images/" + name
		var img api.Image
		if decode(t, f.expect(t, 200, path).body, &img); !img.ReadOnly {
			t.Errorf("%s: read_only is false", name)
		}
		before := f.state(t, name)
		f.put(t, name, 0, []byte("x")).problem(t, 403, "read-only")
		f.do(t, "DELETE", path).problem(t, 403, "read-only")
		f.send(t, "PATCH", path, []byte(`{"size":99999999}`), "Content-Type", "application/merge-patch+json").problem(t, 403, "read-only")
		for call, body := range map[string]string{
			"/zero":        `{"offset":0,"length":1}`,
			"/trim":        `{"offset":0,"length":1}`,
			"/flush":       `{}`,
			"/allocations": `{"length":1}`,
			"/mappings":    `{"updates":[{"offset":0,"length":65536,"target":{"kind":"zero"}}]}`,
		} {
			f.json(t, "POST", path+call, body).problem(t, 403, "read-only")
		}
		f.send(t, "PUT", path+"/allocations/x/data", nil).problem(t, 403, "read-only")
		f.do(t, "DELETE", path+"/allocations/x").problem(t, 403, "read-only")
		f.expect(t, 200, path+"/allocations")
		f.get(t, path+"/allocations/x").problem(t, 404, "not-found")
		if f.state(t, name) != before {
			t.Errorf("%s has changed", name)
		}
	}
	f.json(t, "POST", "/v1/images", `{"name":"new.raw","format":"raw","size":1}`).problem(t, 403, "read-only")
	f.json(t, "POST", "/v1/images/over.qcow2/check", `{"repair":"all"}`).problem(t, 403, "read-only")
	if a := f.json(t, "POST", "/v1/images/over.qcow2/check", `{}`); a.status != 200 {
		t.Errorf("a check that only looks: %d, %s", a.status, a.body)
	}
}
