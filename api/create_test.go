package api_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/extentd/extentd/api"
)

// create wants an image to be created.
func (f *fixture) create(t testing.TB, body string) api.Image {
	t.Helper()
	a := f.json(t, "POST", "/v1/images", body)
	if a.status != 201 {
		t.Fatalf("%s: %d: %s", body, a.status, a.body)
	}
	var img api.Image
	decode(t, a.body, &img)
	if got := a.header.Get("Location"); got != "/v1/images/"+img.Name {
		t.Errorf("Location %q", got)
	}
	return img
}

// info is what qemu-img says of an image, whose format it is told.
func (f *fixture) info(t testing.TB, image, format string) (info struct {
	VirtualSize    int64  `json:"virtual-size"`
	ClusterSize    int64  `json:"cluster-size"`
	Backing        string `json:"backing-filename"`
	BackingFormat  string `json:"backing-filename-format"`
	FormatSpecific struct {
		Data struct {
			Compat          string `json:"compat"`
			CompressionType string `json:"compression-type"`
			LazyRefcounts   bool   `json:"lazy-refcounts"`
			RefcountBits    int    `json:"refcount-bits"`
			ExtendedL2      bool   `json:"extended-l2"`
			DataFile        string `json:"data-file"`
			DataFileRaw     bool   `json:"data-file-raw"`
		} `json:"data"`
	} `json:"format-specific"`
},
) {
	t.Helper()
	cmd := exec.Command("qemu-img", "info", "--output=json", "-U", "-f", format, image)
	cmd.Dir = f.dir
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(out, &info); err != nil {
		t.Fatal(err)
	}
	return info
}

func TestCreate(t *testing.T) {
	f := start(t, api.Options{}, nil)
	f.random(t, "base.raw", 3*mib)
	img := f.create(t, `{"name":"a.raw","format":"raw","size":1048577}`)
	if img.Size != mib+1 || img.Format != "raw" || img.ReadOnly || img.Qcow2 != nil {
		t.Errorf("%+v", img)
	}
	if got := f.content(t, "a.raw"); len(got) != mib+1 || len(bytes.Trim(got, "\x00")) > 0 {
		t.Errorf("%d bytes", len(got))
	}
	img = f.create(t, `{"name":"b.qcow2","format":"qcow2","size":0}`)
	if img.Size != 0 || img.Qcow2.ClusterSize != 65536 || img.Qcow2.Version != 3 || img.Qcow2.RefcountBits != 16 || img.Qcow2.CompressionType != "zlib" {
		t.Errorf("%+v", img)
	}
	img = f.create(t, `{"name":"c.qcow2","format":"qcow2","size":10485760,"cluster_size":131072,"refcount_bits":8,"extended_l2":true,
		"lazy_refcounts":true,"compression_type":"zstd","compat":"1.1","preallocation":"metadata"}`)
	if q := img.Qcow2; img.Size != 10*mib || q.ClusterSize != 131072 || q.RefcountBits != 8 || !q.ExtendedL2 || !q.LazyRefcounts || q.CompressionType != "zstd" {
		t.Errorf("%+v", img)
	}
	if i := f.info(t, "c.qcow2", "qcow2"); i.VirtualSize != 10*mib || i.ClusterSize != 131072 || i.FormatSpecific.Data.RefcountBits != 8 || !i.FormatSpecific.Data.ExtendedL2 {
		t.Errorf("%+v", i)
	}
	img = f.create(t, `{"name":"d.qcow2","format":"qcow2","backing":"base.raw","compat":"0.10"}`)
	if img.Size != 3*mib || len(img.Layers) != 2 || *img.Layers[0].BackingFormat != "raw" || img.Qcow2.Version != 2 {
		t.Errorf("%+v", img)
	}
	if i := f.info(t, "d.qcow2", "qcow2"); i.Backing != "base.raw" || i.BackingFormat != "raw" || i.FormatSpecific.Data.Compat != "0.10" {
		t.Errorf("%+v", i)
	}
	if !bytes.Equal(f.content(t, "d.qcow2"), f.content(t, "base.raw")) {
		t.Error("an overlay differs from its backing")
	}
	img = f.create(t, `{"name":"e.qcow2","format":"qcow2","size":5242880,"backing":"d.qcow2","backing_format":"qcow2"}`)
	if img.Size != 5*mib || len(img.Layers) != 3 {
		t.Errorf("%+v", img)
	}
	img = f.create(t, `{"name":"g.qcow2","format":"qcow2","size":1048576,"data_file":"g.data","data_file_raw":true}`)
	if q := img.Qcow2; q.DataFile == nil || *q.DataFile != "g.data" || !q.DataFileRaw {
		t.Errorf("%+v", img)
	}
	f.put(t, "g.qcow2", 100, []byte("x")).noContent(t)
	f.put(t, "e.qcow2", 100, []byte("x")).noContent(t)
	f.stop(t)
	for _, name := range []string{"b", "c", "d", "e", "g"} {
		f.qemu(t, "qemu-img", "check", "-q", name+".qcow2")
	}
}

func TestCreateRefused(t *testing.T) {
	f := start(t, api.Options{}, nil)
	f.random(t, "base.raw", mib)
	f.write(t, "other.raw", nil)
	for body, want := range map[string]string{
		`{"name":"a.raw"}`:                                                                   "format required",
		`{"format":"raw","size":1}`:                                                          "name required",
		`{"name":"a.raw","format":"raw"}`:                                                    "size required",
		`{"name":"a.vmdk","format":"vmdk","size":1}`:                                         "format oneof",
		`{"name":"","format":"raw","size":1}`:                                                "name pattern",
		`{"name":"../a.raw","format":"raw","size":1}`:                                        "name pattern",
		`{"name":".a.raw","format":"raw","size":1}`:                                          "name pattern",
		`{"name":"a/b.raw","format":"raw","size":1}`:                                         "name pattern",
		`{"name":"a.qcow2","format":"qcow2","size":-1}`:                                      "size min",
		`{"name":"a.qcow2","format":"qcow2","size":1,"cluster_size":256}`:                    "cluster_size min",
		`{"name":"a.qcow2","format":"qcow2","size":1,"cluster_size":4194304}`:                "cluster_size max",
		`{"name":"a.qcow2","format":"qcow2","size":1,"cluster_size":65537}`:                  "cluster_size value",
		`{"name":"a.qcow2","format":"qcow2","size":1,"refcount_bits":0}`:                     "refcount_bits min",
		`{"name":"a.qcow2","format":"qcow2","size":1,"refcount_bits":3}`:                     "refcount_bits value",
		`{"name":"a.qcow2","format":"qcow2","size":1,"compat":"v3"}`:                         "compat oneof",
		`{"name":"a.qcow2","format":"qcow2","size":1,"compression_type":"lzo"}`:              "compression_type oneof",
		`{"name":"a.qcow2","format":"qcow2","size":1,"preallocation":"on"}`:                  "preallocation oneof",
		`{"name":"a.qcow2","format":"qcow2","size":1,"backing":""}`:                          "backing min",
		`{"name":"a.qcow2","format":"qcow2","size":1,"encryption":"luks"}`:                   "encryption unknown",
		`{"name":"a.qcow2","format":"qcow2","size":1,"compat":"0.10","lazy_refcounts":true}`: "lazy_refcounts value",
	} {
		if got := faults(f.json(t, "POST", "/v1/images", body).problem(t, 400, "invalid-request")); got != want {
			t.Errorf("%s: %s, want %s", body, got, want)
		}
	}
	for _, body := range []string{
		`{"name":"a.raw","format":"qcow2","size":1}`,
		`{"name":"a","format":"raw","size":1}`,
		`{"name":"a.qcow2","format":"raw","size":1}`,
		`{"name":"a.raw","format":"raw","size":1,"cluster_size":65536}`,
		`{"name":"a.raw","format":"raw","size":1,"preallocation":"metadata"}`,
		`{"name":"a.raw","format":"raw","size":1,"backing":"base.raw"}`,
		`{"name":"a.qcow2","format":"qcow2","size":9223372036854775807}`,
		`{"name":"a.qcow2","format":"qcow2","size":1,"extended_l2":true,"cluster_size":512}`,
		`{"name":"a.qcow2","format":"qcow2","size":1,"data_file_raw":true}`,
		`{"name":"a.qcow2","format":"qcow2","size":1,"data_file":"../x"}`,
	} {
		f.json(t, "POST", "/v1/images", body).problem(t, 400, "invalid-request")
	}
	f.json(t, "POST", "/v1/images", `{"name":"base.raw","format":"raw","size":1}`).problem(t, 409, "exists")
	f.json(t, "POST", "/v1/images", `{"name":"a.qcow2","format":"qcow2","backing":"none.raw"}`).problem(t, 422, "backing-unavailable")
	left, err := os.ReadDir(f.dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range left {
		names = append(names, e.Name())
	}
	if got := strings.Join(names, " "); got != "base.raw other.raw" {
		t.Errorf("left behind: %s", got)
	}
}

func TestResize(t *testing.T) {
	f := start(t, api.Options{}, nil)
	names, content := f.disks(t)
	for _, name := range names {
		path := "/v1/images/" + name
		patch := func(body string, headers ...string) answer {
			t.Helper()
			return f.send(t, "PATCH", path, []byte(body), append(headers, "Content-Type", "application/merge-patch+json")...)
		}
		before := f.state(t, name)
		if a := patch(`{}`); a.status != 200 {
			t.Errorf("%s: %d: %s", name, a.status, a.body)
		}
		patch(`{"size":4096}`).problem(t, 400, "invalid-request")
		patch(`{"size":-1}`).problem(t, 400, "invalid-request")
		patch(`{"size":9223372036854775807}`).problem(t, 400, "invalid-request")
		patch(`{"size":null}`).problem(t, 400, "invalid-request")
		patch(`{"name":"x.raw"}`).problem(t, 400, "invalid-request")
		patch(`{"size":1}`, "Content-Type", "application/json-patch+json").problem(t, 415, "unsupported-media-type")
		patch(`{}`, "If-Match", `"other"`).problem(t, 412, "precondition-failed")
		patch(`{"size":99999999}`, "If-Match", `"other"`).problem(t, 412, "precondition-failed")
		if f.state(t, name) != before {
			t.Errorf("%s has changed", name)
		}
		const larger = diskSize + 3*mib + 512
		etag := f.do(t, "HEAD", path+"/data").header.Get("Etag")
		patch(`{"size":90000000}`, "If-Match", etag)
		a := f.json(t, "PATCH", path, fmt.Sprintf(`{"size":%d,"shrink":true}`, larger))
		var img api.Image
		if decode(t, a.body, &img); a.status != 200 || img.Size != larger {
			t.Fatalf("%s: %d, %s", name, a.status, a.body)
		}
		want := append(bytes.Clone(content), make([]byte, larger-diskSize)...)
		if !bytes.Equal(f.content(t, name), want) {
			t.Errorf("%s: what it grew by differs", name)
		}
		f.put(t, name, larger-5, []byte("there")).noContent(t)
		f.json(t, "PATCH", path, `{"size":512,"shrink":true}`)
		f.json(t, "PATCH", path, `{"size":1536}`)
		if want := append(bytes.Clone(content[:512]), make([]byte, 1024)...); !bytes.Equal(f.content(t, name), want) {
			t.Errorf("%s: after shrinking and growing it differs", name)
		}
	}
	f.stop(t)
	for _, name := range names[1:] {
		f.qemu(t, "qemu-img", "check", "-q", name)
	}
}

func TestDelete(t *testing.T) {
	f := start(t, api.Options{}, nil)
	f.disks(t)
	f.do(t, "DELETE", "/v1/images/base.raw").problem(t, 409, "conflict")
	f.do(t, "DELETE", "/v1/images/over.qcow2", "If-Match", `"other"`).problem(t, 412, "precondition-failed")
	etag := f.do(t, "HEAD", "/v1/images/over.qcow2/data").header.Get("Etag")
	f.put(t, "over.qcow2", 0, []byte("x")).noContent(t)
	f.do(t, "DELETE", "/v1/images/over.qcow2", "If-Match", etag).problem(t, 412, "precondition-failed")
	etag = f.do(t, "HEAD", "/v1/images/over.qcow2/data").header.Get("Etag")
	f.do(t, "DELETE", "/v1/images/over.qcow2", "If-Match", etag).noContent(t)
	f.do(t, "DELETE", "/v1/images/over.qcow2").problem(t, 404, "not-found")
	f.get(t, "/v1/images/over.qcow2").problem(t, 404, "not-found")
	if _, err := os.Stat(filepath.Join(f.dir, "over.qcow2")); err == nil {
		t.Error("the file is still there")
	}
	f.do(t, "DELETE", "/v1/images/base.raw").noContent(t)
	f.write(t, "broken.qcow2", []byte("QFI\xfb and no more"))
	f.do(t, "DELETE", "/v1/images/broken.qcow2").noContent(t)
	f.do(t, "DELETE", "/v1/images/-").problem(t, 400, "invalid-request")
}

func TestCheck(t *testing.T) {
	f := start(t, api.Options{}, nil)
	f.disks(t)
	var r api.CheckReport
	a := f.json(t, "POST", "/v1/images/plain.qcow2/check", `{}`)
	if decode(t, a.body, &r); a.status != 200 || r.Corruptions+r.Leaks != 0 || r.AllocatedClusters == 0 || r.TotalClusters != 81 || r.ImageEndOffset == 0 || r.Errors == nil {
		t.Errorf("%d: %s", a.status, a.body)
	}
	// A live allocation is no leak.
	f.allocate(t, "plain.qcow2", `{"length":1048576}`)
	a = f.json(t, "POST", "/v1/images/plain.qcow2/check", `{"repair":"all"}`)
	if decode(t, a.body, &r); a.status != 200 || r.Corruptions+r.Leaks+r.LeaksFixed != 0 {
		t.Errorf("%d: %s", a.status, a.body)
	}
	f.json(t, "POST", "/v1/images/plain.qcow2/check", `{"repair":"some"}`).problem(t, 400, "invalid-request")
	f.json(t, "POST", "/v1/images/disk.raw/check", `{}`).problem(t, 422, "unsupported-feature")
	f.json(t, "POST", "/v1/images/none.qcow2/check", `{}`).problem(t, 404, "not-found")
}
