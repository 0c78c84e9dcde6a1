package qcow2_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/qcow2"
)

// TestZerosAsQEMU discards and zeroes clusters in every state, in one image by
// qemu-io and in a copy here: qemu-img must see no difference.
func TestZerosAsQEMU(t *testing.T) {
	targets := map[string]storage.TargetKind{"discard": storage.ToUnmapped, "write -z -u": storage.ToZero, "write -z": storage.ToAnchored}
	for _, tt := range []struct {
		name, options string
		backed        bool
	}{
		{"version 3", "", false},
		{"version 3, backed", "", true},
		{"version 2", "compat=0.10", false},
		{"512", "cluster_size=512", false},
		{"extended", "extended_l2=on", false},
		{"extended, backed", "extended_l2=on", true},
		{"data file", "data_file=data", false},
	} {
		for command, kind := range targets {
			t.Run(tt.name+", "+command, func(t *testing.T) {
				if tt.name == "version 2" && kind != storage.ToUnmapped {
					return // QEMU writes zeros then
				}
				testZeros(t, tt.options, tt.backed, command, kind)
			})
		}
	}
}

func testZeros(t *testing.T, options string, backed bool, command string, kind storage.TargetKind) {
	dir := t.TempDir()
	unit := 64 * kib
	if strings.Contains(options, "512") {
		unit = 512
	}
	size := 12*unit + 512
	if backed {
		create(t, dir, "base", size, "")
		qemuIO(t, dir, "base", fmt.Sprintf("write -P 7 0 %d", size))
		options = strings.Trim(options+",backing_file=base,backing_fmt=qcow2", ",")
	}
	create(t, dir, "image", size, options)
	u := func(n int64) int64 { return n * unit }
	commands := []string{fmt.Sprintf("write -P 1 0 %d", u(5))} // data, and one is left so
	if !strings.Contains(options, "compat") {
		commands = append(commands, fmt.Sprintf("write -z %d %d", u(1), unit), fmt.Sprintf("write -z -u %d %d", u(2), unit))
		if !strings.Contains(options, "512") {
			commands = append(commands, fmt.Sprintf("write -z %d %d", u(4)+unit/2, unit/4)) // subclusters
		}
	}
	if !strings.Contains(options, "data_file") {
		commands = append(commands, fmt.Sprintf("write -c -P 3 %d %d", u(7), unit))
	}
	commands = append(commands, fmt.Sprintf("write -P 4 %d %d", u(12), 512))
	qemuIO(t, dir, "image", commands...)
	w := &written{t: t, dir: dir}
	w.load()
	w.open()
	w.ok(w.image.Update(t.Context(), 0, size, storage.Target{Kind: kind}))
	w.ok(w.image.Close())

	var each []string
	for off := int64(0); off < size; off += unit {
		each = append(each, fmt.Sprintf("%s %d %d", command, off, min(unit, size-off)))
	}
	qemuIO(t, dir, "image", each...)
	want := qemuMap(t, dir, "-f", "qcow2", "image")
	w.save()
	got := qemuMap(t, dir, "-f", "qcow2", "image")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-qemu-io +Update):\n%s", diff)
	}
	if out := w.check(); !strings.Contains(out, "No errors") {
		t.Error(out)
	}
}

// TestUnchanged updates what is so already: nothing may be written.
func TestUnchanged(t *testing.T) {
	for _, options := range []string{"", "extended_l2=on", "cluster_size=512"} {
		w := newWritten(t, 1<<20, options, nil)
		whole := func(kind storage.TargetKind) {
			w.ok(w.image.Update(t.Context(), 0, 1<<20, storage.Target{Kind: kind}))
			w.ok(w.image.Flush(t.Context()))
		}
		before := w.file.Bytes()
		whole(storage.ToUnmapped)
		if string(w.file.Bytes()) != string(before) {
			t.Errorf("%q: a discard of nothing wrote something", options)
		}
		whole(storage.ToZero)
		before = w.file.Bytes()
		for _, kind := range []storage.TargetKind{storage.ToZero, storage.ToUnmapped, storage.ToAnchored} {
			if whole(kind); string(w.file.Bytes()) != string(before) {
				t.Errorf("%q: %v of zeros wrote something", options, kind)
			}
		}
		w.close()
	}
}

// TestAnchors reserves by writing, zeroes and keeps, and shows the same blocks
// again.
func TestAnchors(t *testing.T) {
	for _, options := range []string{"", "extended_l2=on", "data_file=data", "data_file=data,data_file_raw=on"} {
		w := newWritten(t, 1<<20, options, nil)
		w.write(make([]byte, 128<<10), 0)
		before := w.mapping(64 << 10)
		w.clear(0, 128<<10, storage.ToAnchored)
		after := w.mapping(64 << 10)
		if !after.Status.Has(storage.Zero|storage.Alloc|storage.OffsetValid) || after.NodeOffset != before.NodeOffset {
			t.Errorf("%q: anchored: %+v, before %+v", options, after, before)
		}
		w.write([]byte{1, 2, 3}, 64<<10)
		if m := w.mapping(64 << 10); m.NodeOffset != before.NodeOffset || m.Status.Has(storage.Zero) {
			t.Errorf("%q: written: %+v, before %+v", options, m, before)
		}
		w.compare()
		w.close()
	}
}

// TestSubclusters maps subclusters of new and of present clusters, and those
// that would lose others.
func TestSubclusters(t *testing.T) {
	w := newWritten(t, 1<<20, "extended_l2=on", func(dir string) {
		qemuIO(t, dir, "image", "write -P 1 128k 4k")
		run(t, dir, "qemu-img", "snapshot", "-c", "s", "image")
		qemuIO(t, dir, "image", "write -c -P 2 192k 64k", "write -P 3 256k 2k")
	})
	ctx, unit := t.Context(), w.units.Data
	b, err := w.image.Alloc(ctx, 64<<10, storage.AllocOptions{})
	w.ok(err)
	_, err = b.Node.WriteAt(ctx, []byte(strings.Repeat("\x05", 4096)), b.Offset+unit)
	w.ok(err)
	for _, tt := range []struct {
		off, n int64
		err    error
	}{
		{128 << 10, unit, storage.ErrConflict},          // the other one is shared with the snapshot
		{192 << 10, unit, storage.ErrConflict},          // compressed
		{256<<10 + unit, unit, storage.ErrConflict},     // the first one has another cluster
		{2 * unit, unit / 2, storage.ErrMisaligned},     // half of one
		{unit / 2, unit, storage.ErrMisaligned},         //
		{1<<20 - unit, 2 * unit, storage.ErrOutOfRange}, //
	} {
		to := storage.Target{Kind: storage.ToData, Node: b.Node, NodeOffset: b.Offset + tt.off&(64<<10-1)}
		if err := w.image.Update(ctx, tt.off, tt.n, to); !errors.Is(err, tt.err) {
			t.Errorf("Update(%d, %d) = %v, want %v", tt.off, tt.n, err, tt.err)
		}
	}
	w.ok(w.image.Update(ctx, unit, 2*unit, storage.Target{Kind: storage.ToData, Node: b.Node, NodeOffset: b.Offset + unit}))
	copy(w.model[unit:], strings.Repeat("\x05", 4096))
	if m := w.mapping(0); m.Status != storage.Alloc|storage.OffsetValid || m.Flags&storage.Writable == 0 {
		t.Errorf("beside: %+v", m)
	}
	w.write([]byte{6}, 0) // shows the subcluster that is reserved
	if m := w.mapping(0); m.NodeOffset != b.Offset {
		t.Errorf("written: %+v, want it at %d", m, b.Offset)
	}
	w.compare()
	w.close()
}

// TestTargets: what does not fit is refused, and changes nothing.
func TestTargets(t *testing.T) {
	w := newWritten(t, 1<<20+512, "", func(dir string) {
		qemuIO(t, dir, "image", "write -P 1 0 64k")
		run(t, dir, "qemu-img", "snapshot", "-c", "s", "image")
	})
	ctx, c := t.Context(), int64(64<<10)
	shared := w.mapping(0)
	b, err := w.image.Alloc(ctx, 2*c, storage.AllocOptions{Contiguous: true})
	w.ok(err)
	other := storage.NewNode("other", w.file, storage.NodeOptions{})
	data := func(at int64) storage.Target {
		return storage.Target{Kind: storage.ToData, Node: b.Node, NodeOffset: at}
	}
	for _, tt := range []struct {
		off, n int64
		to     storage.Target
		err    error
	}{
		{0, c, storage.Target{}, storage.ErrUnsupported},
		{0, c, storage.Target{Kind: 9}, storage.ErrUnsupported},
		{512, c, storage.Target{Kind: storage.ToZero}, storage.ErrMisaligned},
		{0, 512, storage.Target{Kind: storage.ToZero}, storage.ErrMisaligned},
		{-c, c, storage.Target{Kind: storage.ToZero}, storage.ErrOutOfRange},
		{0, 1 << 40, storage.Target{Kind: storage.ToZero}, storage.ErrOutOfRange},
		{1 << 20, c, storage.Target{Kind: storage.ToZero}, storage.ErrOutOfRange},
		{0, c, data(b.Offset + 512), storage.ErrMisaligned},
		{0, c, data(b.Offset + 2*c), storage.ErrConflict},
		{0, c, data(0), storage.ErrConflict},
		{0, c, data(shared.NodeOffset), storage.ErrConflict},
		{c, c, data(shared.NodeOffset), storage.ErrConflict},
		{0, 3 * c, data(b.Offset), storage.ErrConflict},
		{0, c, data(-c), storage.ErrOutOfRange},
		{0, c, data(1 << 56), storage.ErrOutOfRange},
		{0, c, storage.Target{Kind: storage.ToData, Node: other, NodeOffset: b.Offset}, storage.ErrConflict},
	} {
		if err := w.image.Update(ctx, tt.off, tt.n, tt.to); !errors.Is(err, tt.err) {
			t.Errorf("Update(%d, %d, %+v) = %v, want %v", tt.off, tt.n, tt.to, err, tt.err)
		}
	}
	for _, bad := range []storage.Blocks{
		{Node: b.Node, Offset: b.Offset + 2*c, Length: c},
		{Node: b.Node, Offset: b.Offset, Length: 3 * c},
		{Node: b.Node, Offset: 0, Length: c},
		{Node: other, Offset: b.Offset, Length: c},
	} {
		if err := w.image.Free(ctx, bad); !errors.Is(err, storage.ErrConflict) {
			t.Errorf("Free(%+v) = %v", bad, err)
		}
	}
	w.compare()
	w.ok(w.image.Update(ctx, 1<<20, 512, data(b.Offset+c))) // the last cluster is cut
	if err := w.image.Free(ctx, b); !errors.Is(err, storage.ErrConflict) {
		t.Errorf("Free of what is mapped in part: %v", err)
	}
	w.ok(w.image.Free(ctx, storage.Blocks{Node: b.Node, Offset: b.Offset, Length: c}))
	w.close()
}

// TestVersion2 has no zero clusters.
func TestVersion2(t *testing.T) {
	w := newWritten(t, 1<<20, "compat=0.10", func(dir string) { qemuIO(t, dir, "image", "write -P 1 0 64k") })
	if err := w.image.Update(t.Context(), 0, 1<<20, storage.Target{Kind: storage.ToAnchored}); !errors.Is(err, storage.ErrUnsupported) {
		t.Errorf("anchored: %v", err)
	}
	w.ok(w.image.Update(t.Context(), 64<<10, 64<<10, storage.Target{Kind: storage.ToAnchored}))
	w.ok(w.image.Close())
	w.opt = qcow2.Options{Backed: true}
	w.open()
	for _, kind := range []storage.TargetKind{storage.ToUnmapped, storage.ToZero} {
		if err := w.image.Update(t.Context(), 0, 1<<20, storage.Target{Kind: kind}); !errors.Is(err, storage.ErrUnsupported) {
			t.Errorf("%v over a backing: %v", kind, err)
		}
	}
	w.close()
}
