package qcow2_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/qcow2"
	"github.com/extentd/extentd/storage/storagetest"
)

const (
	extBackingFormat = 0xe2792aca
	extFeatures      = 0x6803f857
	extBitmaps       = 0x23852875
	extCrypto        = 0x0537be77
	extDataFile      = 0x44415441
)

// A poke damages a well-formed image: 64 KiB clusters, 1 MiB, no data.
type poke struct {
	name    string
	base    builder
	patches []patch
	err     error  // nil: it opens all the same
	says    string // part of the error's text
	ours    bool   // some QEMU opens it; we follow the specification
}

func field(off int64, b []byte) []patch { return []patch{{off, b}} }

func names(entries ...string) []byte {
	var table []byte
	for _, e := range entries {
		table = append(table, e...)
		table = append(table, make([]byte, 48-len(e))...)
	}
	return table
}

// TestPokes opens every damaged image, and has QEMU open it too.
func TestPokes(t *testing.T) {
	for name, pokes := range map[string][]poke{"header": headerPokes(), "extension": extensionPokes()} {
		t.Run(name, func(t *testing.T) {
			for _, p := range pokes {
				t.Run(p.name, func(t *testing.T) {
					t.Parallel()
					p.test(t)
				})
			}
		})
	}
}

func (p *poke) image() []byte {
	if p.base.size == 0 {
		p.base.size = 1 << 20
	}
	if len(p.patches) == 1 && p.patches[0].off < 0 {
		return nil
	}
	return patched(p.base.bytes(), p.patches...)
}

func (p *poke) test(t *testing.T) {
	content := p.image()
	i, err := qcow2.Open(t.Context(), memNode(content), qcow2.Options{
		OpenData: func(context.Context, string) (*storage.Node, error) { return memNode(nil), nil },
	})
	if !errors.Is(err, p.err) || p.err == nil && err != nil {
		t.Errorf("Open: %v, want %v", err, p.err)
	}
	if err != nil && !strings.Contains(err.Error(), p.says) {
		t.Errorf("Open: %v, want it to say %q", err, p.says)
	}
	if err == nil {
		checkUsable(t, i)
	}
	if p.ours {
		return
	}
	dir := t.TempDir()
	for name, b := range map[string][]byte{image: content, "data.raw": nil} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	node := "driver=qcow2,file.filename=" + image
	if p.base.incompatible&4 != 0 {
		node += ",data-file.driver=file,data-file.filename=data.raw"
	}
	if out, err := try(t, dir, "qemu-img", "info", "--image-opts", node); (err == nil) != (p.err == nil) && !p.harmless(out) {
		t.Errorf("qemu-img info: %v\n%s", err, out)
	}
}

// harmless is where qemu-img fails for a reason of its own: the backing file
// that it looks for, or a name longer than it can open.
func (p *poke) harmless(out string) bool {
	return strings.Contains(out, "No such file or directory")
}

// checkUsable maps all of an image that was opened.
func checkUsable(t *testing.T, i *qcow2.Image) {
	t.Helper()
	var l storage.ExtentList
	if i.Size() > 0 {
		if err := storage.CheckMapper(i).Fetch(t.Context(), 0, min(i.Size(), gib), &l); err != nil {
			t.Errorf("Fetch: %v", err)
		}
	}
	if _, err := i.Snapshots(t.Context()); err != nil {
		t.Errorf("Snapshots: %v", err)
	}
	if _, err := i.Bitmaps(t.Context()); err != nil {
		t.Errorf("Bitmaps: %v", err)
	}
	if _, err := i.LooksPreallocated(t.Context()); err != nil {
		t.Errorf("LooksPreallocated: %v", err)
	}
	if err := i.Close(); err != nil {
		t.Error(err)
	}
}

// TestTruncated opens every beginning of an image. What is missing reads as
// zeros, or the image is refused.
func TestTruncated(t *testing.T) {
	content := alternating(9, 256).bytes()
	for n := range content {
		i, err := openBytes(t, content[:n])
		if err != nil {
			if !errors.Is(err, storage.ErrCorrupt) && !errors.Is(err, storage.ErrUnsupported) {
				t.Fatalf("%d bytes: %v", n, err)
			}
			continue
		}
		checkUsable(t, i)
	}
}

func TestInfo(t *testing.T) {
	name := func(s string) []byte { return []byte(s) }
	for _, tt := range []struct {
		name    string
		image   builder
		patches []patch
		want    qcow2.Info
	}{
		{
			"version 2",
			builder{version: 2, clusterBits: 9, size: 1 << 20},
			nil,
			qcow2.Info{Version: 2, ClusterSize: 512, RefcountBits: 16, CompressionType: "zlib"},
		},
		{
			"flags",
			builder{size: 1 << 20, extended: true, incompatible: 1 | 2 | 8, compatible: 1},
			field(96, be32(6)),
			qcow2.Info{Version: 3, ClusterSize: 65536, RefcountBits: 64, CompressionType: "zstd", ExtendedL2: true, LazyRefcounts: true, Dirty: true, Corrupt: true},
		},
		{
			"backing",
			builder{size: 1 << 20, extensions: []extension{{extBackingFormat, name("qcow2")}}},
			[]patch{{8, be64(60000)}, {16, be32(9)}, {60000, name("base.img!ignored")}},
			qcow2.Info{Version: 3, ClusterSize: 65536, RefcountBits: 16, CompressionType: "zlib", BackingFile: "base.img!", BackingFormat: "qcow2"},
		},
		{
			"names end at a NUL",
			builder{size: 1 << 20, extensions: []extension{{extBackingFormat, name("raw\x00w2")}}},
			[]patch{{8, be64(60000)}, {16, be32(9)}, {60000, name("base\x00../x")}},
			qcow2.Info{Version: 3, ClusterSize: 65536, RefcountBits: 16, CompressionType: "zlib", BackingFile: "base", BackingFormat: "raw"},
		},
		{
			"the last extension counts",
			builder{size: 1 << 20, extensions: []extension{{extBackingFormat, name("qcow2")}, {7, nil}, {extBackingFormat, name("raw")}}},
			nil,
			qcow2.Info{Version: 3, ClusterSize: 65536, RefcountBits: 16, CompressionType: "zlib", BackingFormat: "raw"},
		},
		{
			"data file",
			builder{size: 1 << 20, incompatible: 4, autoclear: 2, extensions: []extension{{extDataFile, name("data.raw")}}},
			nil,
			qcow2.Info{Version: 3, ClusterSize: 65536, RefcountBits: 16, CompressionType: "zlib", HasDataFile: true, DataFile: "data.raw", DataFileRaw: true},
		},
		{
			"aes",
			builder{size: 1 << 20, crypt: 1},
			nil,
			qcow2.Info{Version: 3, ClusterSize: 65536, RefcountBits: 16, CompressionType: "zlib", Encryption: "aes"},
		},
		{
			"luks",
			builder{size: 1 << 20, crypt: 2, extensions: []extension{{extCrypto, append(be64(0x30000), be64(512)...)}}},
			nil,
			qcow2.Info{Version: 3, ClusterSize: 65536, RefcountBits: 16, CompressionType: "zlib", Encryption: "luks"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			i, err := qcow2.Open(t.Context(), memNode(patched(tt.image.bytes(), tt.patches...)), qcow2.Options{
				OpenData: func(context.Context, string) (*storage.Node, error) { return memNode(nil), nil },
			})
			if err != nil {
				t.Fatal(err)
			}
			defer i.Close()
			if diff := cmp.Diff(tt.want, i.Info()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestDataFileOption(t *testing.T) {
	named := builder{size: 1 << 20, incompatible: 4, extensions: []extension{{extDataFile, []byte("data.raw\x00")}}}
	unnamed := builder{size: 1 << 20, incompatible: 4}
	for _, b := range []*builder{&named, &unnamed} {
		if _, err := openBytes(t, b.bytes()); !errors.Is(err, storage.ErrBackingUnavailable) {
			t.Errorf("without OpenData: %v", err)
		}
	}
	var asked []string
	failure := errors.New("no such thing")
	for _, b := range []*builder{&named, &unnamed} {
		for _, result := range []struct {
			node *storage.Node
			err  error
			want error
		}{
			{memNode(nil), nil, nil},
			{nil, failure, failure},
			{nil, nil, storage.ErrBackingUnavailable},
		} {
			i, err := qcow2.Open(t.Context(), memNode(b.bytes()), qcow2.Options{
				OpenData: func(_ context.Context, name string) (*storage.Node, error) {
					asked = append(asked, name)
					return result.node, result.err
				},
			})
			if !errors.Is(err, result.want) || result.want == nil && err != nil {
				t.Errorf("Open: %v, want %v", err, result.want)
			}
			if err == nil {
				i.Close()
			}
		}
	}
	if diff := cmp.Diff([]string{"data.raw", "data.raw", "data.raw", "", "", ""}, asked); diff != "" {
		t.Errorf("names (-want +got):\n%s", diff)
	}
	// What is malformed elsewhere is found before a file is opened.
	_, err := qcow2.Open(t.Context(), memNode(patched(named.bytes(), patch{96, be32(7)})), qcow2.Options{
		OpenData: func(context.Context, string) (*storage.Node, error) { t.Error("opened"); return nil, failure },
	})
	if !errors.Is(err, storage.ErrCorrupt) {
		t.Error(err)
	}
}

// TestReadErrors fails every read of an open and of a fetch in turn.
func TestReadErrors(t *testing.T) {
	content := alternating(9, 256).bytes()
	failure := errors.New("bad sector")
	for nth := int64(1); ; nth++ {
		hook := storagetest.FailNth(storagetest.OpRead, nth, failure)
		file := storagetest.NewMemFileWith(storagetest.MemOptions{Hook: hook})
		file.Put(content, 0)
		i, err := qcow2.Open(t.Context(), storage.NewNode("image", file, storage.NodeOptions{}), qcow2.Options{})
		if err == nil {
			var l storage.ExtentList
			err = i.Fetch(t.Context(), 0, i.Size(), &l)
			l.Reset()
			if again := i.Fetch(t.Context(), 0, i.Size(), &l); again != nil {
				t.Errorf("read %d: the error stays: %v", nth, again)
			}
			i.Close()
		}
		if err == nil {
			if nth < 6 { // the header, an L1 page, four slices
				t.Errorf("only %d reads", nth-1)
			}
			break
		}
		if !errors.Is(err, failure) || errors.Is(err, storage.ErrCorrupt) {
			t.Errorf("read %d: %v, want %v", nth, err, failure)
		}
	}
}

// TestBlockSizes reads metadata through a node that takes whole blocks only.
func TestBlockSizes(t *testing.T) {
	b := alternating(9, 256)
	b.extensions = []extension{{extBackingFormat, []byte("raw")}}
	content := patched(b.bytes(), patch{8, be64(300)}, patch{16, be32(7)}, patch{300, []byte("backing")})
	for _, minimum := range []int64{1, 512, 4096, 65536} {
		t.Run(fmt.Sprint(minimum), func(t *testing.T) {
			file := storagetest.NewMemFileWith(storagetest.MemOptions{Limits: storage.Limits{Minimum: minimum}})
			file.Put(content, 0)
			i, err := qcow2.Open(t.Context(), storage.NewNode("image", file, storage.NodeOptions{}), qcow2.Options{})
			if err != nil {
				t.Fatal(err)
			}
			if i.Info().BackingFile != "backing" || i.Info().BackingFormat != "raw" {
				t.Errorf("Info() = %+v", i.Info())
			}
			var l storage.ExtentList
			if err := i.Fetch(t.Context(), 0, i.Size(), &l); err != nil || l.Len() != 256 {
				t.Errorf("Fetch: %d extents, %v", l.Len(), err)
			}
			checkUsable(t, i)
		})
	}
}
