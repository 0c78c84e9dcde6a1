package qcow2_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/qcow2"
	"github.com/extentd/extentd/storage/storagetest"
)

// A written image is one in memory that is written to, with a model of what it
// should contain. What it needs of block I/O it does itself, a cluster at a time
// and as simply as possible.
type written struct {
	t     testing.TB
	dir   string
	image *qcow2.Image
	node  *storage.Node
	file  *storagetest.MemFile
	data  *storagetest.MemFile // nil without an external data file
	opt   qcow2.Options
	units storage.Units
	model []byte
}

// newWritten makes an image with qemu-img, lets prepare change it in its
// directory, and opens it for writing.
func newWritten(t testing.TB, size int64, options string, prepare func(dir string)) *written {
	t.Helper()
	w := &written{t: t, dir: t.TempDir()}
	create(t, w.dir, "image", size, options)
	if prepare != nil {
		prepare(w.dir)
	}
	run(t, w.dir, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", "image", "model")
	w.model = load(t, w.dir, "model")
	w.load()
	w.open()
	return w
}

// load takes the files of the directory.
func (w *written) load() {
	w.file = storagetest.NewMemFile(load(w.t, w.dir, "image"))
	if names, _ := filepath.Glob(filepath.Join(w.dir, "data")); len(names) > 0 {
		w.data = storagetest.NewMemFile(load(w.t, w.dir, "data"))
	}
}

func (w *written) open() {
	w.t.Helper()
	w.node = storage.NewNode("image", w.file, storage.NodeOptions{})
	opt := w.opt
	if w.data != nil {
		opt.OpenData = func(context.Context, string) (*storage.Node, error) {
			return storage.NewNode("data", w.data, storage.NodeOptions{}), nil
		}
	}
	i, err := qcow2.Open(w.t.Context(), w.node, opt)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { i.Close() })
	if err := i.StartWriting(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	w.image, w.units = i, i.Units()
}

func (w *written) ok(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// mapping is what the image says at off, cut to it and to a unit of data.
func (w *written) mapping(off int64) storage.Mapping {
	w.t.Helper()
	var l storage.ExtentList
	w.ok(storage.CheckMapper(w.image).Fetch(w.t.Context(), off, 1, &l))
	m := *l.At(l.Find(off))
	m.Clip(off, min(m.End(), off&^(w.units.Data-1)+w.units.Data))
	return m
}

// read is what the guest reads at [off, off+n), without a backing.
func (w *written) read(off, n int64) []byte {
	w.t.Helper()
	p := make([]byte, n)
	for at := off; at < off+n; {
		m := w.mapping(at)
		end := min(m.End(), off+n)
		switch to := p[at-off : end-off]; {
		case m.Flags&storage.Compressed != 0:
			end = min(at&^(w.units.Alloc-1)+w.units.Alloc, off+n)
			packed, unit := make([]byte, m.PackedLength), make([]byte, w.units.Alloc)
			got, _ := m.Node.ReadAt(w.t.Context(), packed, m.NodeOffset)
			w.ok(w.image.Unpack(unit, packed[:got]))
			copy(p[at-off:end-off], unit[at&(w.units.Alloc-1):])
		case m.Status == storage.Local|storage.Alloc|storage.OffsetValid:
			if got, err := m.Node.ReadAt(w.t.Context(), to, m.NodeOffset); got < len(to) && m.Flags&storage.ZeroTail == 0 {
				w.t.Fatalf("%d bytes at %d of %s: %d, %v", len(to), m.NodeOffset, m.Node.Name(), got, err)
			}
		}
		at = end
	}
	return p
}

// write is what a caller does for p at off: in place, or into new clusters.
func (w *written) write(p []byte, off int64) {
	w.t.Helper()
	copy(w.model[off:], p)
	for len(p) > 0 {
		unit := w.units.Data
		m := w.mapping(off)
		inPlace := m.Status == storage.Local|storage.Alloc|storage.OffsetValid && m.Flags&storage.Writable != 0
		hidden := m.Status.Has(storage.Alloc|storage.OffsetValid) && m.Flags&storage.Writable != 0
		if !hidden {
			unit = w.units.Alloc
		}
		from := off &^ (unit - 1)
		n := min(int64(len(p)), from+unit-off)
		if inPlace {
			w.ok(w.image.CheckWrite(w.t.Context(), m.Node, m.NodeOffset, n))
			_, err := m.Node.WriteAt(w.t.Context(), p[:n], m.NodeOffset)
			w.ok(err)
		} else {
			w.replace(p[:n], off, from, min(unit, w.image.Size()-from), hidden)
		}
		p, off = p[n:], off+n
	}
}

// replace fills and maps [from, from+length) with p at off, and what is read
// there around it: in blocks that are there and hidden, or in new ones.
func (w *written) replace(p []byte, off, from, length int64, hidden bool) {
	w.t.Helper()
	ctx := w.t.Context()
	full := w.read(from, length)
	copy(full[off-from:], p)
	var b storage.Blocks
	if hidden {
		m := w.mapping(from)
		b = storage.Blocks{Node: m.Node, Offset: m.NodeOffset, Length: length}
	} else {
		var err error
		b, err = w.image.Alloc(ctx, length, storage.AllocOptions{Guest: from})
		w.ok(err)
		if b.Length != w.units.Alloc {
			w.t.Fatalf("Alloc(%d) gave %+v", length, b)
		}
		full = append(full, make([]byte, b.Length-length)...)
	}
	w.ok(w.image.CheckWrite(ctx, b.Node, b.Offset, int64(len(full))))
	_, err := b.Node.WriteAt(ctx, full, b.Offset)
	w.ok(err)
	w.ok(w.image.Update(ctx, from, length, storage.Target{Kind: storage.ToData, Node: b.Node, NodeOffset: b.Offset}))
}

// clear makes whole blocks zeros, one way or another. What the format cannot say
// is written.
func (w *written) clear(off, n int64, kind storage.TargetKind) {
	w.t.Helper()
	err := w.image.Update(w.t.Context(), off, n, storage.Target{Kind: kind})
	if err != nil && w.image.Info().Version == 2 {
		w.write(make([]byte, n), off)
		return
	}
	w.ok(err)
	clear(w.model[off : off+n])
}

// randomStep does something at random.
func (w *written) randomStep(rng *rand.Rand) {
	w.t.Helper()
	size := w.image.Size()
	off := rng.Int64N(size)
	n := min(size-off, 1+rng.Int64N(3*w.units.Alloc))
	switch kind := rng.IntN(10); {
	case kind < 5:
		w.write(bytes.Repeat([]byte{byte(1 + rng.IntN(255))}, int(n)), off)
	case kind < 8:
		off &^= w.units.Alloc - 1
		n = (n + w.units.Alloc - 1) &^ (w.units.Alloc - 1)
		n = min(n, size-off)
		w.clear(off, n, []storage.TargetKind{storage.ToUnmapped, storage.ToZero, storage.ToAnchored}[kind-5])
	case kind == 8:
		w.ok(w.image.Flush(w.t.Context()))
	default: // reserved and given back
		b, err := w.image.Alloc(w.t.Context(), n, storage.AllocOptions{Contiguous: rng.IntN(2) == 0, Guest: off &^ (w.units.Alloc - 1)})
		w.ok(err)
		w.ok(w.image.Free(w.t.Context(), b))
	}
}

// compare reads everything.
func (w *written) compare() {
	w.t.Helper()
	if got := w.read(0, w.image.Size()); !bytes.Equal(got, w.model) {
		w.t.Fatalf("the image differs from the model at %d", differs(got, w.model))
	}
}

func differs(a, b []byte) int {
	for k := range min(len(a), len(b)) {
		if a[k] != b[k] {
			return k
		}
	}
	return min(len(a), len(b))
}

// close closes the image and has qemu-img check and compare it.
func (w *written) close() {
	w.t.Helper()
	w.ok(w.image.Close())
	w.verify()
}

func (w *written) verify() {
	w.t.Helper()
	w.save()
	if out, err := try(w.t, w.dir, "qemu-img", "check", "-f", "qcow2", "image"); err != nil {
		w.t.Fatalf("qemu-img check: %v\n%s", err, out)
	}
	run(w.t, w.dir, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", "image", "result")
	got := load(w.t, w.dir, "result")
	if !bytes.Equal(got, w.model) {
		w.t.Fatalf("qemu-img reads %d bytes, which differ from the model at %d", len(got), differs(got, w.model))
	}
	if w.data != nil && w.image.Info().DataFileRaw {
		raw := w.data.Bytes()
		raw = append(raw, make([]byte, max(0, len(w.model)-len(raw)))...)
		if !bytes.Equal(raw, w.model) {
			w.t.Fatalf("the raw data file differs from the model at %d", differs(raw, w.model))
		}
	}
}

// save writes the files to the directory.
func (w *written) save() {
	w.t.Helper()
	w.ok(w.file.WriteFile(filepath.Join(w.dir, "image")))
	if w.data != nil {
		w.ok(w.data.WriteFile(filepath.Join(w.dir, "data")))
	}
}

// A writtenKind is a way to make an image.
type writtenKind struct {
	name    string
	size    int64
	options string
	prepare func(t testing.TB, dir string)
	cache   int64
}

func writtenKinds() []writtenKind {
	kinds := []writtenKind{
		{name: "default", size: 4<<20 + 512},
		{name: "version 2", size: 3 << 20, options: "compat=0.10"},
		{name: "512", size: 512<<10 + 512, options: "cluster_size=512"},
		{name: "512, version 2", size: 256 << 10, options: "cluster_size=512,compat=0.10"},
		{name: "4096", size: 2 << 20, options: "cluster_size=4096"},
		{name: "4096, small cache", size: 8 << 20, options: "cluster_size=4096", cache: 1},
		{name: "2 MiB", size: 16<<20 + 1024, options: "cluster_size=2M"},
		{name: "extended", size: 4<<20 + 512, options: "extended_l2=on"},
		{name: "extended, 16 KiB", size: 1 << 20, options: "extended_l2=on,cluster_size=16k"},
		{name: "data file", size: 2<<20 + 512, options: "data_file=data"},
		{name: "data file, extended", size: 2 << 20, options: "data_file=data,extended_l2=on"},
		{name: "raw data file", size: 2 << 20, options: "data_file=data,data_file_raw=on"},
		{name: "lazy", size: 2 << 20, options: "lazy_refcounts=on"},
		{name: "lazy, 512", size: 128 << 10, options: "lazy_refcounts=on,cluster_size=512"},
		{name: "preallocated", size: 2 << 20, options: "preallocation=metadata"},
		{name: "compressed", size: 2 << 20, prepare: func(t testing.TB, dir string) {
			qemuIO(t, dir, "image", "write -c -P 1 0 64k", "write -c -P 2 64k 64k", "write -c -P 3 128k 64k", "write -c -P 4 1M 64k", "write -P 5 1536k 128k")
		}},
		{name: "compressed, zstd and 4096", size: 1 << 20, options: "compression_type=zstd,cluster_size=4096", prepare: func(t testing.TB, dir string) {
			var commands []string
			for k := range 64 {
				commands = append(commands, fmt.Sprintf("write -c -P %d %dk 4k", k+1, 8*k))
			}
			qemuIO(t, dir, "image", commands...)
		}},
		{name: "snapshots", size: 2 << 20, prepare: snapshots},
		{name: "snapshots, 512", size: 256 << 10, options: "cluster_size=512", prepare: snapshots},
		{name: "snapshots, extended", size: 2 << 20, options: "extended_l2=on", prepare: snapshots},
	}
	for bits := 1; bits <= 64; bits *= 2 {
		kinds = append(kinds, writtenKind{name: fmt.Sprintf("refcounts of %d", bits), size: 512 << 10, options: fmt.Sprintf("cluster_size=1k,refcount_bits=%d", bits)})
	}
	return kinds
}

// snapshots writes and takes snapshots in turns.
func snapshots(t testing.TB, dir string) {
	for k := range 3 {
		qemuIO(t, dir, "image", fmt.Sprintf("write -P %d %dk 100k", k+1, 50*k), fmt.Sprintf("write -z %dk 4k", 30*k))
		run(t, dir, "qemu-img", "snapshot", "-c", fmt.Sprintf("s%d", k), "image")
	}
	qemuIO(t, dir, "image", "write -P 9 64k 64k")
}

// TestRandomWrites does random things to every kind of image, and compares with
// a byte model; qemu-io goes on in between, and we after it.
func TestRandomWrites(t *testing.T) {
	for _, kind := range writtenKinds() {
		t.Run(kind.name, func(t *testing.T) {
			rng := random(t)
			w := newWritten(t, kind.size, kind.options, func(dir string) {
				if kind.prepare != nil {
					kind.prepare(t, dir)
				}
			})
			if kind.cache > 0 {
				w.opt.CacheSize = kind.cache
				w.ok(w.image.Close())
				w.open()
			}
			for range 3 {
				for range 60 {
					w.randomStep(rng)
				}
				w.compare()
				w.close()
				w.qemuStep(rng)
				w.open()
			}
			w.compare()
			w.close()
		})
	}
}

// qemuStep lets qemu-io write, and takes a snapshot where there can be one.
func (w *written) qemuStep(rng *rand.Rand) {
	w.t.Helper()
	off := rng.Int64N(w.image.Size()-512) &^ 511
	n := min(w.image.Size()-off, 48<<10)
	value := 1 + rng.IntN(255)
	qemuIO(w.t, w.dir, "image", fmt.Sprintf("write -P %d %d %d", value, off, n))
	copy(w.model[off:], bytes.Repeat([]byte{byte(value)}, int(n)))
	if info := w.image.Info(); w.data == nil && info.RefcountBits > 2 {
		run(w.t, w.dir, "qemu-img", "snapshot", "-c", fmt.Sprintf("r%d", rng.Uint32()), "image")
	}
	w.load()
}

// check runs qemu-img check and returns what it prints.
func (w *written) check() string {
	w.t.Helper()
	w.save()
	out, _ := try(w.t, w.dir, "qemu-img", "check", "-f", "qcow2", "image")
	return strings.TrimSpace(out)
}
