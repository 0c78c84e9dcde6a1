package nbd_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/nbd/wire"
)

// bitmapped has two bitmaps, of which one is frozen with the first MiB dirty in
// pieces, and the other records.
func bitmapped(t *testing.T) func(dir string) {
	return func(dir string) {
		run(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "vm.qcow2", "16M")
		run(t, dir, "qemu-img", "bitmap", "--add", "-g", "64K", "vm.qcow2", "frozen")
		run(t, dir, "qemu-io", "-f", "qcow2", "-c", "write 0 64k", "-c", "write 128k 128k", "vm.qcow2")
		run(t, dir, "qemu-img", "bitmap", "--disable", "vm.qcow2", "frozen")
		run(t, dir, "qemu-img", "bitmap", "--add", "-g", "512", "vm.qcow2", "live")
	}
}

const (
	frozen = wire.DirtyBitmap + "frozen"
	live   = wire.DirtyBitmap + "live"
)

func (c *client) listContexts(export string, queries ...string) []string {
	c.t.Helper()
	return names(c.t, c.want(wire.OptListMetaContext, wire.AppendMeta(nil, &wire.MetaRequest{Name: export, Queries: queries}), wire.RepAck))
}

func TestBitmapContexts(t *testing.T) {
	v := serve(t, setup{}, bitmapped(t))
	c := v.greet(t)
	c.agree(extended)
	all := []string{wire.BaseAllocation, wire.AllocationDepth, frozen, live}
	for _, tt := range []struct{ queries, list, set []string }{
		{nil, all, nil},
		{[]string{"qemu:"}, all[1:], nil},
		{[]string{wire.DirtyBitmap}, all[2:], nil},
		{[]string{wire.DirtyBitmap, wire.DirtyBitmap, "base:"}, []string{all[0], frozen, live}, nil},
		{[]string{live}, []string{live}, []string{live}},
		{[]string{live, frozen, live, wire.BaseAllocation}, []string{all[0], frozen, live}, []string{all[0], frozen, live}},
		{[]string{live + "x", "qemu:dirty-bitmap", "qemu:dirty-bitmap:f", "qemu:dirty-bitmap:*"}, nil, nil},
	} {
		if diff := cmp.Diff(tt.list, c.listContexts("vm.qcow2", tt.queries...)); diff != "" {
			t.Errorf("list %q: %s", tt.queries, diff)
		}
		if diff := cmp.Diff(tt.set, c.setContexts("vm.qcow2", tt.queries...)); diff != "" {
			t.Errorf("set %q: %s", tt.queries, diff)
		}
	}
}

func TestBitmapStatus(t *testing.T) {
	v := serve(t, setup{}, bitmapped(t))
	for _, m := range modes[1:] {
		c := v.greet(t)
		c.agree(m)
		c.setContexts("vm.qcow2", wire.BaseAllocation, frozen, live)
		c.choose("vm.qcow2")
		c.writeAt(make([]byte, 4096), 8*mib+4096)
		status := c.statusOf(0, 16*mib, 0)
		want := map[uint32][]wire.Descriptor{
			0: descriptors(64<<10, data, 64<<10, hole, 128<<10, data, 8*mib-256<<10, hole, 64<<10, data, 8*mib-64<<10, hole),
			2: descriptors(64<<10, 1, 64<<10, 0, 128<<10, 1, 16*mib-256<<10, 0),
			3: descriptors(8*mib+4096, 0, 4096, 1, 8*mib-8192, 0),
		}
		if diff := cmp.Diff(want, status); diff != "" {
			t.Errorf("%v: %s", m, diff)
		}
		want = map[uint32][]wire.Descriptor{0: descriptors(100, data), 2: descriptors(100, 1), 3: descriptors(100, 0)}
		if diff := cmp.Diff(want, c.statusOf(50, 100, wire.FlagReqOne)); diff != "" {
			t.Errorf("%v: %s", m, diff)
		}
		if got := c.statusOf(64<<10, 16*mib-64<<10, wire.FlagReqOne); !slices.Equal(got[2], descriptors(64<<10, 0)) || !slices.Equal(got[3], descriptors(8*mib+4096-64<<10, 0)) {
			t.Errorf("%v: one: %v", m, got)
		}
	}
}

// A marked image is a raw one with a bitmap, in which some ranges are dirty.
type marked struct {
	*hooked
	dirty [][2]int64 // where they begin and end, bytes
}

func (m marked) Bitmaps(context.Context) ([]storage.BitmapInfo, error) {
	return []storage.BitmapInfo{{Name: "live", Granularity: 512, Dirty: -1}}, nil
}

func (m marked) ChangeBitmaps(context.Context, []storage.BitmapChange) error {
	return storage.ErrUnsupported
}

func (m marked) Dirty(_ context.Context, _ string, off, n int64, visit func(off, n int64, dirty bool) error) error {
	at, end := off, off+n
	put := func(to int64, dirty bool) error {
		if to = min(to, end); to <= at {
			return nil
		}
		from := at
		at = to
		return visit(from, to-from, dirty)
	}
	for _, d := range m.dirty {
		if err := put(d[0], false); err != nil {
			return err
		}
		if err := put(d[1], true); err != nil {
			return err
		}
	}
	return put(end, false)
}

// TestBitmapBlocks: boundaries are multiples of the minimum, and a block is dirty if
// any part of it is.
func TestBitmapBlocks(t *testing.T) {
	for _, tt := range []struct {
		dirty [][2]int64
		want  []wire.Descriptor
	}{
		{nil, descriptors(mib, 0)},
		{[][2]int64{{0, mib}}, descriptors(mib, 1)},
		{[][2]int64{{512, 1024}}, descriptors(4096, 1, mib-4096, 0)},
		{[][2]int64{{512, 1024}, {2048, 4096}}, descriptors(4096, 1, mib-4096, 0)},
		{[][2]int64{{8192, 8704}, {12288 - 512, 12288}, {12800, 13312}}, descriptors(8192, 0, 8192, 1, mib-16384, 0)},
		{[][2]int64{{4096, 5120}, {mib - 512, mib}}, descriptors(4096, 0, 4096, 1, mib-12288, 0, 4096, 1)},
	} {
		o := with(hooked{minimum: 4096})
		d := o.Formats["raw"]
		open := d.Open
		d.Open = func(ctx context.Context, node *storage.Node, opt service.DriverOptions) (service.Layer, error) {
			l, err := open(ctx, node, opt)
			if err == nil {
				l.Mapper = marked{l.Mapper.(*hooked), tt.dirty}
			}
			return l, err
		}
		o.Formats["raw"] = d
		v := serve(t, setup{service: o}, raw(t, "a.raw", make([]byte, mib)))
		for _, m := range modes[1:] {
			c := v.greet(t)
			c.agree(m)
			c.setContexts("a.raw", live)
			c.choose("a.raw")
			if diff := cmp.Diff(map[uint32][]wire.Descriptor{2: tt.want}, c.statusOf(0, mib, 0)); diff != "" {
				t.Errorf("%v, %v: %s", tt.dirty, m, diff)
			}
			if diff := cmp.Diff(map[uint32][]wire.Descriptor{2: tt.want[:1]}, c.statusOf(0, mib, wire.FlagReqOne)); diff != "" {
				t.Errorf("%v, %v, one: %s", tt.dirty, m, diff)
			}
		}
	}
}

// TestManyBitmaps: there is room for 14 at a time, and all are listed.
func TestManyBitmaps(t *testing.T) {
	const many = 100
	v := serve(t, setup{}, func(dir string) { run(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "vm.qcow2", "1M") })
	var changes []service.ImageBitmapChange
	name := func(n int) string { return fmt.Sprint(n, strings.Repeat("x", 1000)) }
	for n := range many {
		changes = append(changes, service.ImageBitmapChange{Image: "vm.qcow2", BitmapChange: storage.BitmapChange{Kind: storage.BitmapCreate, Name: name(n), Enabled: n == many-1}})
	}
	if err := v.svc.ChangeBitmaps(t.Context(), changes); err != nil {
		t.Fatal(err)
	}
	c := v.greet(t)
	c.agree(structured)
	if got := c.listContexts("vm.qcow2", wire.DirtyBitmap); len(got) != many || got[many-1] != wire.DirtyBitmap+name(many-1) {
		t.Errorf("%d are listed", len(got))
	}
	var queries []string
	for n := range 20 {
		queries = append(queries, wire.DirtyBitmap+name(many-1-n))
	}
	if got := c.setContexts("vm.qcow2", queries...); len(got) != 14 {
		t.Errorf("%d are agreed on", len(got))
	}
	c.choose("vm.qcow2")
	if got := c.statusOf(0, mib, 0); len(got) != 14 || !slices.Equal(got[15], descriptors(mib, 0)) {
		t.Errorf("%v", got)
	}
}

// TestBitmapGone: a bitmap that is deleted while a client has its context is no
// longer told of, and the connection goes on.
func TestBitmapGone(t *testing.T) {
	v := serve(t, setup{}, bitmapped(t))
	c := v.greet(t)
	c.agree(extended)
	c.setContexts("vm.qcow2", wire.BaseAllocation, frozen)
	c.choose("vm.qcow2")
	c.statusOf(0, mib, 0)
	gone := service.ImageBitmapChange{Image: "vm.qcow2", BitmapChange: storage.BitmapChange{Kind: storage.BitmapDelete, Name: "frozen"}}
	if err := v.svc.ChangeBitmaps(t.Context(), []service.ImageBitmapChange{gone}); err != nil {
		t.Fatal(err)
	}
	c.fails(wire.EINVAL, wire.Request{Command: wire.CmdBlockStatus, Length: mib}, nil)
	r, p := wire.Request{Command: wire.CmdBlockStatus, Flags: wire.FlagPayloadLen}, wire.AppendStatusQuery(nil, mib, []uint32{0})
	if got := c.works(r, p).status; len(got) != 1 {
		t.Error(got)
	}
}

// TestBitmapsAsQEMU: nbdinfo is told what qemu-nbd tells it of the same image.
func TestBitmapsAsQEMU(t *testing.T) {
	v := serve(t, setup{}, bitmapped(t))
	dir := v.dir
	for _, b := range []string{"frozen", "live"} {
		ours := run(t, dir, "nbdinfo", "--json", "--map=qemu:dirty-bitmap:"+b, v.uri("vm.qcow2"))
		theirs := run(t, dir, "nbdinfo", "--json", "--map=qemu:dirty-bitmap:"+b, "--", "[", "qemu-nbd", "-r", "-f", "qcow2", "-B", b, "vm.qcow2", "]")
		if diff := cmp.Diff(theirs, ours); diff != "" {
			t.Errorf("%s (-qemu-nbd +ours): %s", b, diff)
		}
	}
}
