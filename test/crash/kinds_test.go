package crash_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// A kind is one sort of image, and what is done to it.
type kind struct {
	name    string
	cluster int64
	size    int64
	options []string // of qemu-img create
	// before are commands that QEMU runs on the new image, after a share of it
	// was written: `snapshot NAME` or qemu-io's.
	before []string
	// below is the size of a raw backing; 0 for none.
	below int64
	// packed: the image is compressed.
	packed bool
	lazy   bool
	data   bool // an external data file
	// most is the longest write, bytes; resizes is how far the size wanders.
	most    int64
	resizes int64
	// weights of writes, zeros, trims, flushes, allocations and resizes.
	weights [6]int

	once  sync.Once
	files map[string][]byte // the image, and its data and backing files
}

// usual are the weights of a workload that does everything but resize.
var usual = [6]int{8, 2, 3, 2, 2, 0}

// kinds are what the tests of this package write to. They are small, so that
// every event of a workload can be the last.
var kinds = []*kind{
	{name: "allocating", cluster: 4 * kib, size: mib, most: 40 * kib, weights: usual},
	{name: "snapshots", cluster: 4 * kib, size: 512 * kib, most: 40 * kib, weights: usual, before: []string{
		"write -P 1 0 300k", "snapshot one", "write -P 2 100k 100k", "write -z 220k 20k", "snapshot two",
	}},
	{name: "refcount growth", cluster: 512, size: 6 * mib, most: 400 * kib, weights: [6]int{10, 0, 1, 2, 1, 0}, options: []string{"refcount_bits=64"}},
	{name: "small clusters", cluster: 512, size: 256 * kib, most: 10 * kib, weights: usual, options: []string{"refcount_bits=16"}},
	{name: "resize", cluster: 512, size: 512 * kib, most: 20 * kib, resizes: 8 * mib, weights: [6]int{8, 2, 2, 2, 1, 4}},
	{name: "reuse", cluster: 4 * kib, size: 256 * kib, most: 60 * kib, weights: [6]int{6, 3, 8, 3, 2, 0}},
	{name: "lazy", cluster: 4 * kib, size: 512 * kib, most: 40 * kib, weights: usual, lazy: true, options: []string{"lazy_refcounts=on"}},
	{name: "lazy snapshots", cluster: 4 * kib, size: 512 * kib, most: 40 * kib, weights: usual, lazy: true, options: []string{"lazy_refcounts=on"}, before: []string{
		"write -P 1 0 300k", "snapshot one",
	}},
	{name: "data file", cluster: 4 * kib, size: 512 * kib, most: 40 * kib, weights: [6]int{8, 2, 3, 2, 0, 1}, resizes: mib, data: true},
	{name: "subclusters", cluster: 16 * kib, size: mib, most: 30 * kib, weights: usual, options: []string{"extended_l2=on"}},
	{name: "subclusters over", cluster: 16 * kib, size: 512 * kib, below: 300*kib + 512, most: 30 * kib, weights: usual, options: []string{"extended_l2=on"}},
	{name: "over", cluster: 4 * kib, size: 512 * kib, below: 300*kib + 512, most: 30 * kib, weights: [6]int{8, 2, 3, 2, 1, 2}, resizes: mib},
	{name: "version 2", cluster: 4 * kib, size: 512 * kib, most: 30 * kib, weights: [6]int{8, 2, 3, 2, 0, 0}, options: []string{"compat=0.10"}},
	{name: "packed", cluster: 4 * kib, size: 256 * kib, most: 30 * kib, weights: usual, packed: true},
	{name: "narrow", cluster: 4 * kib, size: 512 * kib, most: 30 * kib, weights: usual, options: []string{"refcount_bits=1"}},
}

// growing is for TestSoakGrowth: a refcount block counts 64 clusters, and a
// sector of the refcount table has 64 blocks.
var growing = &kind{
	name: "growing", cluster: 512, size: 16 * mib, most: 700 * kib, weights: [6]int{10, 0, 0, 2, 1, 0}, options: []string{"refcount_bits=64"},
}

// load makes the image once, and returns the content of its files.
func (k *kind) load(t *testing.T) map[string][]byte {
	t.Helper()
	k.once.Do(func() {
		dir := t.TempDir()
		options := append([]string{fmt.Sprint("cluster_size=", k.cluster)}, k.options...)
		if k.below > 0 {
			must(t, os.WriteFile(filepath.Join(dir, "below.raw"), nil, 0o644))
			must(t, os.Truncate(filepath.Join(dir, "below.raw"), k.below))
			run(t, dir, "qemu-io", "-f", "raw", "-c", fmt.Sprintf("write -P 99 0 %d", k.below/2&^511), "below.raw")
			options = append(options, "backing_file=below.raw", "backing_fmt=raw")
		}
		if k.data {
			options = append(options, "data_file=data.raw")
		}
		if k.packed {
			must(t, os.WriteFile(filepath.Join(dir, "source.raw"), []byte(strings.Repeat("easily compressed ", int(k.size)/18)), 0o644))
			must(t, os.Truncate(filepath.Join(dir, "source.raw"), k.size))
			run(t, dir, "qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", strings.Join(options, ","), "source.raw", "image.qcow2")
			must(t, os.Remove(filepath.Join(dir, "source.raw")))
		} else {
			run(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "-o", strings.Join(options, ","), "image.qcow2", fmt.Sprint(k.size))
		}
		for _, c := range k.before {
			if name, ok := strings.CutPrefix(c, "snapshot "); ok {
				run(t, dir, "qemu-img", "snapshot", "-c", name, "image.qcow2")
			} else {
				run(t, dir, "qemu-io", "-f", "qcow2", "-c", c, "image.qcow2")
			}
		}
		k.files = map[string][]byte{}
		entries, err := os.ReadDir(dir)
		must(t, err)
		for _, e := range entries {
			k.files[e.Name()], err = os.ReadFile(filepath.Join(dir, e.Name()))
			must(t, err)
		}
	})
	return k.files
}
