package test

import (
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// A graphNode is what it says of one node.
type graphNode struct {
	Kind     string           `json:"kind"`
	Node     string           `json:"node"`
	Limits   map[string]int64 `json:"limits"`
	Counters map[string]int64 `json:"counters"`
}

// An image is what the server says of one.
type image struct {
	Name           string           `json:"name"`
	Format         string           `json:"format"`
	Problem        *problem         `json:"problem"`
	Size           int64            `json:"size"`
	Allocated      int64            `json:"allocated"`
	ReadOnly       bool             `json:"read_only"`
	Generation     string           `json:"generation"`
	DataGeneration string           `json:"data_generation"`
	Limits         map[string]int64 `json:"limits"`
	Layers         []struct {
		Depth         int         `json:"depth"`
		Format        string      `json:"format"`
		Node          string      `json:"node"`
		Size          int64       `json:"size"`
		ClusterSize   int64       `json:"cluster_size"`
		BackingFile   string      `json:"backing_file"`
		BackingFormat string      `json:"backing_format"`
		Graph         []graphNode `json:"graph"`
	} `json:"layers"`
	QCOW2 *struct {
		Version         int              `json:"version"`
		ClusterSize     int64            `json:"cluster_size"`
		RefcountBits    int              `json:"refcount_bits"`
		CompressionType string           `json:"compression_type"`
		ExtendedL2      bool             `json:"extended_l2"`
		LazyRefcounts   bool             `json:"lazy_refcounts"`
		Dirty           bool             `json:"dirty"`
		Corrupt         bool             `json:"corrupt"`
		DataFile        string           `json:"data_file"`
		DataFileRaw     bool             `json:"data_file_raw"`
		Encryption      string           `json:"encryption"`
		Snapshots       []map[string]any `json:"snapshots"`
		Bitmaps         []map[string]any `json:"bitmaps"`
	} `json:"qcow2"`
}

// TestImage compares what the server says of every kind with qemu-img info.
func TestImage(t *testing.T) {
	s := serve(t, served)
	eachKind(t, func(t *testing.T, k *kind) {
		var img image
		s.getJSON(t, &img, "/v1/images/"+k.file)
		if img.Name != k.file || img.Format != formatOf(k.file) || img.Size != k.size || img.Problem != nil {
			t.Errorf("%+v", img)
		}
		for _, limit := range []string{"minimum", "preferred", "max_data", "max_trim", "max_zero", "max_cache"} {
			if img.Limits[limit] < 1 {
				t.Errorf("limit %s is %d", limit, img.Limits[limit])
			}
		}
		if img.Generation == "" || img.DataGeneration == "" || len(img.Layers) == 0 {
			t.Errorf("%+v", img)
		}
		info := qemuInfo(t, served, k.file)
		depth := 0
		for layer := info; ; depth++ {
			backing, ok := layer["backing-filename"].(string)
			if !ok {
				break
			}
			if depth < len(img.Layers) && (img.Layers[depth].BackingFile != backing || img.Layers[depth].BackingFormat != formatOf(backing)) {
				t.Errorf("layer %d is %+v, want backing file %q", depth, img.Layers[depth], backing)
			}
			layer = qemuInfo(t, served, backing)
		}
		if len(img.Layers) != depth+1 {
			t.Errorf("%d layers, want %d", len(img.Layers), depth+1)
		}
		if img.Format == "qcow2" {
			sameQCOW2(t, img, info)
		}
	})
}

// sameQCOW2 compares the format's own members with qemu-img's.
func sameQCOW2(t *testing.T, img image, info map[string]any) {
	t.Helper()
	q := img.QCOW2
	if q == nil {
		t.Fatal("no member qcow2")
	}
	data := info["format-specific"].(map[string]any)["data"].(map[string]any)
	text := func(name string) string { v, _ := data[name].(string); return v }
	flag := func(name string) bool { v, _ := data[name].(bool); return v }
	count := func(v any) int { list, _ := v.([]any); return len(list) }
	compression := text("compression-type")
	if compression == "" {
		compression = "zlib" // v2 does not say
	}
	version := map[string]int{"0.10": 2, "1.1": 3}[text("compat")]
	refcounts := 16
	if bits, ok := data["refcount-bits"].(float64); ok {
		refcounts = int(bits)
	}
	dirty, _ := info["dirty-flag"].(bool)
	if q.Version != version || q.ClusterSize != int64(info["cluster-size"].(float64)) || q.RefcountBits != refcounts ||
		q.CompressionType != compression || q.ExtendedL2 != flag("extended-l2") || q.LazyRefcounts != flag("lazy-refcounts") ||
		q.Dirty != dirty || q.Corrupt != flag("corrupt") || q.DataFile != text("data-file") || q.DataFileRaw != flag("data-file-raw") {
		t.Errorf("%+v, but qemu-img says %v", *q, info)
	}
	if len(q.Snapshots) != count(info["snapshots"]) || len(q.Bitmaps) != count(data["bitmaps"]) {
		t.Errorf("%d snapshots and %d bitmaps, but qemu-img says %v", len(q.Snapshots), len(q.Bitmaps), info)
	}
	for i, s := range q.Snapshots {
		if want := info["snapshots"].([]any)[i].(map[string]any); s["name"] != want["name"] || s["id"] != want["id"] {
			t.Errorf("snapshot %v, want %v", s, want)
		}
	}
	for i, b := range q.Bitmaps {
		if want := data["bitmaps"].([]any)[i].(map[string]any); b["name"] != want["name"] || b["granularity"] != want["granularity"] ||
			b["enabled"] != slices.Contains(want["flags"].([]any), any("auto")) || b["inconsistent"] != slices.Contains(want["flags"].([]any), any("in-use")) {
			t.Errorf("bitmap %v, want %v", b, want)
		}
	}
}

// TestList walks the list of a directory in which not everything is an image.
func TestList(t *testing.T) {
	dir := t.TempDir()
	m := newMaker(t, dir, "a")
	for _, suffix := range []string{"1.qcow2", "2.qcow2", "3.qcow2"} {
		m.create(suffix, mib)
	}
	m.raw("4.raw", mib)
	m.raw("5.img", mib)
	for _, name := range []string{"notes.txt", ".hidden.raw", "b c.raw", "truncated.qcow2"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("QFI"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "directory.raw"), 0o755); err != nil {
		t.Fatal(err)
	}
	s := serve(t, dir)
	for _, limit := range []string{"1", "2", "100"} {
		found := map[string]*problem{}
		for cursor := ""; ; {
			var list struct {
				Images []image `json:"images"`
				Next   string  `json:"next"`
			}
			s.getJSON(t, &list, "/v1/images?limit="+limit+cursor)
			for _, img := range list.Images {
				if _, twice := found[img.Name]; twice {
					t.Errorf("%s is listed twice", img.Name)
				}
				found[img.Name] = img.Problem
				if img.Problem == nil && img.Size != mib {
					t.Errorf("%+v", img)
				}
			}
			if list.Next == "" {
				break
			}
			cursor = "&cursor=" + list.Next
		}
		for _, name := range []string{"a1.qcow2", "a2.qcow2", "a3.qcow2", "a4.raw", "a5.img"} {
			if p, ok := found[name]; !ok || p != nil {
				t.Errorf("limit %s: %s: listed %v, problem %v", limit, name, ok, p)
			}
		}
		if p := found["truncated.qcow2"]; p == nil || p.Type != "/problems/corrupt-image" || p.Status != http.StatusUnprocessableEntity {
			t.Errorf("limit %s: truncated.qcow2: %+v", limit, p)
		}
		for _, name := range []string{"notes.txt", ".hidden.raw", "b c.raw"} {
			if _, ok := found[name]; ok {
				t.Errorf("limit %s: %s is listed", limit, name)
			}
		}
	}
}
