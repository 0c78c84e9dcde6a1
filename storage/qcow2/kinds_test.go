package qcow2_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/qcow2"
	"github.com/extentd/extentd/storage/storagetest"
)

// A kind of image that qemu-img makes: a single layer.
type imageKind struct {
	name    string
	options string
	size    int64
	unit    int64 // what scattered writes are about as long as
	make    func(t *testing.T, dir string, rng *rand.Rand)
	looks   bool // preallocated
}

const image = "image.qcow2"

func imageKinds() []imageKind {
	var kinds []imageKind
	add := func(name, options string, size, unit int64) *imageKind {
		kinds = append(kinds, imageKind{name: name, options: options, size: size, unit: unit})
		return &kinds[len(kinds)-1]
	}
	for bits := 9; bits <= 21; bits++ {
		cluster := int64(1) << bits
		add(fmt.Sprint("cluster ", cluster), fmt.Sprint("cluster_size=", cluster), 64*cluster+512*3, cluster)
	}
	for bits := 1; bits <= 64; bits *= 2 {
		add(fmt.Sprint("refcounts ", bits), fmt.Sprint("refcount_bits=", bits), 4*mib, 64*kib)
		add(fmt.Sprint("refcounts preallocated ", bits), fmt.Sprintf("refcount_bits=%d,cluster_size=4k,preallocation=metadata", bits), 4*mib, 4*kib).looks = true
	}
	for _, cluster := range []int64{512, 64 * kib, 2 * mib} {
		add(fmt.Sprint("version 2 cluster ", cluster), fmt.Sprint("compat=0.10,cluster_size=", cluster), 40*cluster, cluster)
	}
	for _, cluster := range []int64{16 * kib, 64 * kib, 2 * mib} {
		add(fmt.Sprint("extended cluster ", cluster), fmt.Sprint("extended_l2=on,cluster_size=", cluster), 40*cluster+1536, cluster/8)
	}
	for _, compression := range []string{"zlib", "zstd"} {
		for _, cluster := range []int64{512, 64 * kib, 2 * mib} {
			k := add(fmt.Sprint(compression, " cluster ", cluster), fmt.Sprintf("compression_type=%s,cluster_size=%d", compression, cluster), 30*cluster+512, cluster)
			k.make = compressedClusters(cluster)
		}
	}
	add("extended compressed", "extended_l2=on", 3*mib, 64*kib).make = compressedClusters(64 * kib)
	add("data file", "data_file=data.raw", 4*mib, 64*kib)
	add("data file extended", "data_file=data.raw,extended_l2=on", 4*mib, 8*kib)
	add("data file raw", "data_file=data.raw,data_file_raw=on", 4*mib, 64*kib)
	add("lazy refcounts", "lazy_refcounts=on", 4*mib, 64*kib)
	add("preallocation metadata", "preallocation=metadata", 8*mib, 64*kib).looks = true
	add("preallocation falloc", "preallocation=falloc", 4*mib, 64*kib)
	add("preallocation full", "preallocation=full", 4*mib, 64*kib)
	add("preallocation metadata extended", "preallocation=metadata,extended_l2=on", 8*mib, 8*kib).looks = true
	add("empty", "", 0, 0)
	add("unwritten", "", 3*mib+512, 0)
	add("snapshots", "", 4*mib, 64*kib).make = func(t *testing.T, dir string, rng *rand.Rand) {
		for n := range 3 {
			run(t, dir, "qemu-img", "snapshot", "-c", fmt.Sprint("s", n), image)
			scatter(t, dir, image, rng, 0, 4*mib, 64*kib, 15)
		}
		run(t, dir, "qemu-img", "snapshot", "-a", "s1", image)
	}
	return kinds
}

// compressedClusters writes compressed clusters, and then some others.
func compressedClusters(cluster int64) func(t *testing.T, dir string, rng *rand.Rand) {
	return func(t *testing.T, dir string, rng *rand.Rand) {
		var commands []string
		for n := range int64(30) {
			if rng.IntN(3) > 0 {
				commands = append(commands, fmt.Sprintf("write -c -P %d %d %d", 1+rng.IntN(255), n*cluster, cluster))
			}
		}
		commands = append(commands, fmt.Sprintf("write -P 7 %d 512", 3*cluster), fmt.Sprintf("discard %d %d", 5*cluster, cluster))
		qemuIO(t, dir, image, commands...)
	}
}

// build makes the image of the kind in dir.
func (k *imageKind) build(t *testing.T, dir string) {
	t.Helper()
	rng := random(t)
	create(t, dir, image, k.size, k.options)
	if k.make != nil {
		k.make(t, dir, rng)
	} else if k.unit > 0 {
		scatter(t, dir, image, rng, 0, k.size, k.unit, 25)
	}
}

// TestKinds compares the map of every kind of image with qemu-img map, and what
// it leads to with qemu-img convert.
func TestKinds(t *testing.T) {
	for _, k := range imageKinds() {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			k.build(t, dir)
			i := openDisk(t, dir, image)
			if i.Size() != k.size {
				t.Fatalf("Size() = %d, want %d", i.Size(), k.size)
			}
			looks, err := i.LooksPreallocated(t.Context())
			if err != nil || k.looks && !looks {
				t.Errorf("LooksPreallocated() = %v, %v", looks, err)
			}
			if k.size == 0 {
				return
			}
			compareMaps(t, dir, i, 0, k.size)
			run(t, dir, "qemu-img", "convert", "-O", "raw", image, "plain.raw")
			plain, err := os.Open(filepath.Join(dir, "plain.raw"))
			if err != nil {
				t.Fatal(err)
			}
			defer plain.Close()
			t.Run("content", func(t *testing.T) { storagetest.CheckContent(t, i, plain) })
		})
	}
}

// compareMaps compares our map of a range with that of qemu-img.
func compareMaps(t *testing.T, dir string, i *qcow2.Image, off, n int64) {
	t.Helper()
	got := ourMap(t, i, off, n)
	looks, err := i.LooksPreallocated(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if looks {
		got = seeThrough(t, dir, got, i.Info().HasDataFile)
	}
	want := qemuMap(t, dir, "--start-offset", fmt.Sprint(off), "--max-length", fmt.Sprint(n), image)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("map from %d differs (-qemu-img +ours):\n%s", off, diff)
	}
}

// seeThrough splits data where its file has holes: what block status does for
// images that look preallocated. Such data reads as zeros.
func seeThrough(t *testing.T, dir string, entries []mapEntry, dataFile bool) []mapEntry {
	t.Helper()
	const seekData, seekHole = 3, 4
	name := image
	if dataFile {
		name = "data.raw"
	}
	f, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var out []mapEntry
	for _, e := range entries {
		for e.Length > 0 && e.Data && e.Offset != nil {
			part := e
			next, err := f.Seek(*e.Offset, seekData)
			if err != nil { // no data from there on
				next = *e.Offset + e.Length
			}
			part.Zero = next > *e.Offset
			if !part.Zero {
				if next, err = f.Seek(*e.Offset, seekHole); err != nil {
					t.Fatal(err)
				}
			}
			part.Length = min(e.Length, next-*e.Offset)
			offset := *e.Offset + part.Length
			out = append(out, part)
			e.Start, e.Length, e.Offset = e.Start+part.Length, e.Length-part.Length, &offset
		}
		if e.Length > 0 {
			out = append(out, e)
		}
	}
	return merge(out)
}

// TestSuite runs the conformance suite on images that qemu-img converts.
func TestSuite(t *testing.T) {
	for _, options := range [][]string{
		nil,
		{"-o", "compat=0.10,cluster_size=512"},
		{"-o", "extended_l2=on,data_file=data.raw"},
	} {
		t.Run(fmt.Sprint(options), func(t *testing.T) {
			storagetest.TestMapper(t, 512, func(t *testing.T, content []byte, _ ...storagetest.Range) storage.Mapper {
				dir := t.TempDir()
				if err := os.WriteFile(filepath.Join(dir, "plain.raw"), content, 0o600); err != nil {
					t.Fatal(err)
				}
				args := append([]string{"convert", "-q", "-f", "raw", "-O", "qcow2", "-S", "4k"}, options...)
				run(t, dir, "qemu-img", append(args, "plain.raw", image)...)
				return openDisk(t, dir, image)
			})
		})
	}
}

// TestLargest opens images of the largest sizes that there are, writes at both
// ends, and compares the maps there.
func TestLargest(t *testing.T) {
	for _, tt := range []struct {
		options string
		size    int64
		cluster int64
	}{
		{"cluster_size=512", 128 * gib, 512},
		{"", 2 * pib, 64 * kib},
		{"cluster_size=2M", 2 * eib, 2 * mib},
		{"cluster_size=2M,extended_l2=on", eib, 2 * mib},
		{"compat=0.10,cluster_size=4k", 8 * tib, 4 * kib},
	} {
		t.Run(fmt.Sprint(tt.options, " ", tt.size), func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			create(t, dir, image, tt.size, tt.options)
			rng := random(t)
			for _, off := range []int64{0, tt.size/3&^511 - mib, tt.size - 8*tt.cluster} {
				length := min(8*tt.cluster, tt.size-off)
				scatter(t, dir, image, rng, off, length, tt.cluster/2, 6)
				i := openDisk(t, dir, image)
				from := max(0, off-16*tt.cluster)
				window := min(tt.size-from, 64*tt.cluster)
				compareMaps(t, dir, i, from, window)
			}
		})
	}
}

func TestLimit(t *testing.T) {
	for bits := uint32(9); bits <= 21; bits++ {
		i, err := openBytes(t, (&builder{clusterBits: bits}).bytes())
		if err != nil {
			t.Fatal(err)
		}
		l, err := storage.ResolveLimits(t.Context(), i)
		if want := max(4096, int64(1)<<bits); err != nil || l.Preferred != want || l.Minimum != 1 {
			t.Errorf("cluster_bits %d: limits %+v, %v, want preferred %d", bits, l, err, want)
		}
		if i.PackedUnit() != 1<<bits {
			t.Errorf("cluster_bits %d: PackedUnit() = %d", bits, i.PackedUnit())
		}
	}
}
