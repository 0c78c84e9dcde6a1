package qcow2_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/qcow2"
)

// A writableFile is a file of the host that can be written to.
type writableFile struct{ diskFile }

func (f writableFile) WriteAt(_ context.Context, p []byte, off int64) (int, error) {
	return f.File.WriteAt(p, off)
}

func (f writableFile) Zero(_ context.Context, off, n int64, _ bool) error {
	_, err := f.File.WriteAt(make([]byte, n), off)
	return err
}

func (f writableFile) Trim(context.Context, int64, int64) error { return nil }

func (f writableFile) Truncate(_ context.Context, size int64) error { return f.File.Truncate(size) }

func (f writableFile) Flush(context.Context) error { return nil }

// writableNode opens dir/name for writing, and makes it where it is missing.
func writableNode(t testing.TB, dir, name string) *storage.Node {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return storage.NewNode(name, writableFile{diskFile{f}}, storage.NodeOptions{Check: true})
}

// A checkReport is what qemu-img check says.
type checkReport struct {
	Corruptions      int64 `json:"corruptions"`
	Leaks            int64 `json:"leaks"`
	CorruptionsFixed int64 `json:"corruptions-fixed"`
	LeaksFixed       int64 `json:"leaks-fixed"`
	CheckErrors      int64 `json:"check-errors"`
	ImageEnd         int64 `json:"image-end-offset"`
	Total            int64 `json:"total-clusters"`
	Allocated        int64 `json:"allocated-clusters"`
	Fragmented       int64 `json:"fragmented-clusters"`
	Compressed       int64 `json:"compressed-clusters"`
}

func (r *checkReport) clean() bool { return r.Corruptions == 0 && r.Leaks == 0 && r.CheckErrors == 0 }

// qemuCheck is qemu-img check. It reports false where that could not check.
func qemuCheck(t testing.TB, dir, name string, args ...string) (r checkReport, ok bool) {
	t.Helper()
	args = append([]string{"check", "--output=json", "-f", "qcow2"}, append(args, name)...)
	out, warnings, err := execute(t, dir, "qemu-img", args...)
	if jsonErr := json.Unmarshal([]byte(out), &r); jsonErr != nil {
		t.Logf("qemu-img check: %v: %.300s", err, strings.TrimSpace(warnings))
		return r, false
	}
	return r, true
}

func report(r qcow2.CheckResult) checkReport {
	return checkReport{
		r.Corruptions, r.Leaks, r.CorruptionsFixed, r.LeaksFixed, r.CheckErrors, r.ImageEnd,
		r.TotalClusters, r.AllocatedClusters, r.FragmentedClusters, r.CompressedClusters,
	}
}

// sameCheck checks dir/name, and compares with qemu-img.
func sameCheck(t testing.TB, dir, name string) qcow2.CheckResult {
	t.Helper()
	res, err := qcow2.Check(t.Context(), diskNode(t, dir, name), qcow2.CheckOptions{})
	want, ok := qemuCheck(t, dir, name)
	if !ok {
		if err == nil && res.Clean() {
			t.Errorf("checked what qemu-img cannot: %+v", res)
		}
		return res
	}
	if err != nil {
		t.Errorf("Check: %v\nqemu-img: %+v", err, want)
		return res
	}
	if diff := cmp.Diff(want, report(res)); diff != "" {
		t.Errorf("qemu-img check (-) and ours (+):\n%s%s", diff, strings.Join(res.Errors[:min(len(res.Errors), 12)], "\n"))
	}
	return res
}

// checkKinds are images of all kinds.
var checkKinds = []struct{ name, options string }{
	{"default", ""},
	{"v2", "compat=0.10"},
	{"512", "cluster_size=512"},
	{"2M", "cluster_size=2M"},
	{"1 bit", "refcount_bits=1,cluster_size=4k"},
	{"2 bits", "refcount_bits=2,cluster_size=4k"},
	{"4 bits", "refcount_bits=4,cluster_size=1k"},
	{"8 bits", "refcount_bits=8"},
	{"32 bits", "refcount_bits=32,cluster_size=512"},
	{"64 bits", "refcount_bits=64,cluster_size=512"},
	{"extended", "extended_l2=on"},
	{"extended 16k", "extended_l2=on,cluster_size=16k"},
	{"lazy", "lazy_refcounts=on"},
	{"zstd", "compression_type=zstd"},
	{"data file", "data_file=data"},
	{"raw data file", "data_file=data,data_file_raw=on"},
	{"preallocated", "preallocation=metadata,cluster_size=4k"},
	{"luks", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"},
}

// fill makes dir/name an image of a kind with all sorts of content.
func fill(t testing.TB, dir, name, options string) {
	t.Helper()
	const size = 8 << 20
	if strings.Contains(options, "luks") {
		createEncrypted(t, dir, name, options)
		return
	}
	create(t, dir, name, size, options)
	rng := random(t)
	scatter(t, dir, name, rng, 0, 6<<20, 64<<10, 20)
	if strings.Contains(options, "data_file") {
		return
	}
	// qemu-img check -r loses the snapshots of images with bitmaps.
	bitmap := strings.Contains(options, "bits=1,") || strings.Contains(options, "zstd")
	if !bitmap {
		run(t, dir, "qemu-img", "snapshot", "-c", "one", name)
		scatter(t, dir, name, rng, 0, 6<<20, 64<<10, 10)
		run(t, dir, "qemu-img", "snapshot", "-c", "two", name)
	}
	if !strings.Contains(options, "preallocation") {
		qemuIO(t, dir, name, "write -c -P 9 6M 2M", "write -P 3 6M 64k")
	}
	if bitmap {
		run(t, dir, "qemu-img", "bitmap", "--add", "-g", "64k", name, "map")
		qemuIO(t, dir, name, "write -P 3 0 100k")
	}
}

// TestCheck: what we say of images that are well is what qemu-img says.
func TestCheck(t *testing.T) {
	for _, k := range checkKinds {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			fill(t, dir, "image", k.options)
			if strings.Contains(k.options, "luks") {
				res, err := qcow2.Check(t.Context(), diskNode(t, dir, "image"), qcow2.CheckOptions{})
				if err != nil || !res.Clean() {
					t.Errorf("Check = %+v, %v", res, err)
				}
				return
			}
			if res := sameCheck(t, dir, "image"); !res.Clean() {
				t.Errorf("not clean: %v", res.Errors)
			}
			i := openDisk(t, dir, "image")
			res, err := i.Check(t.Context(), qcow2.CheckOptions{})
			if err != nil || !res.Clean() {
				t.Errorf("Image.Check = %+v, %v", res, err)
			}
			if _, err := i.Check(t.Context(), qcow2.CheckOptions{Repair: qcow2.RepairAll}); !errors.Is(err, storage.ErrReadOnly) {
				t.Errorf("repair of what is not being written to: %v, want %v", err, storage.ErrReadOnly)
			}
		})
	}
}
