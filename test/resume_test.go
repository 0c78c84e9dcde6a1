package test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/http"
	"testing"
)

// TestAllocationsOverRestart: what was allocated before the server went down
// is there again when nothing has happened to it, and gone or unharmed when
// QEMU repaired or wrote the image. No cluster ever serves two masters.
func TestAllocationsOverRestart(t *testing.T) {
	const cluster = 64 * kib
	stop := func(s *server) { s.stop() }
	kill := func(s *server) { s.kill() }
	for _, test := range []struct {
		name  string
		end   func(s *server)
		while func(d *disk)
		want  int // status of the allocation afterwards; 0: either
	}{
		{"stop", stop, func(*disk) {}, http.StatusOK},
		{"kill", kill, func(*disk) {}, http.StatusOK},
		{"touched", stop, func(d *disk) { d.run("touch", d.file) }, 0},
		{"looked at", stop, func(d *disk) { d.run("qemu-io", "-r", "-f", "qcow2", "-c", "read 0 1M", d.file) }, http.StatusOK},
		{"written elsewhere", stop, func(d *disk) { d.scatter(d.file, 4*mib, cluster, 30) }, 0},
		{"repaired", stop, func(d *disk) { d.repairLeaks() }, http.StatusNotFound},
		{"killed and repaired", kill, func(d *disk) { d.repairLeaks() }, http.StatusNotFound},
		{"repaired and written", stop, func(d *disk) { d.repairLeaks(); d.io(d.file, d.write(2*mib, 2*mib)) }, http.StatusNotFound},
		{"repaired, written and discarded", stop, func(d *disk) {
			d.repairLeaks()
			d.io(d.file, d.write(2*mib, 2*mib), fmt.Sprintf("discard %d %d", 2*mib, mib))
		}, http.StatusNotFound},
		{"snapshot", stop, func(d *disk) { d.run("qemu-img", "snapshot", "-c", "s", d.file) }, 0},
		{"repaired, and a snapshot", stop, func(d *disk) {
			d.repairLeaks()
			d.io(d.file, d.write(2*mib, mib))
			d.run("qemu-img", "snapshot", "-c", "s", d.file)
		}, http.StatusNotFound},
		{"copied", stop, func(d *disk) { d.run("cp", d.file, "copy"); d.run("mv", "copy", d.file) }, 0},
		{"another image", stop, func(d *disk) {
			d.run("qemu-img", "create", "-q", "-f", "qcow2", d.file, "4M")
			d.io(d.file, d.write(0, 4*mib))
		}, http.StatusNotFound},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			m := newMaker(t, t.TempDir(), "resumed")
			d := &disk{maker: m, subject: plain("", cluster, 4*mib), random: rand.New(rand.NewPCG(*seed, 1)), before: map[string][]byte{}}
			d.file = m.create(".qcow2", 4*mib)
			m.io(d.file, m.write(0, mib))
			d.s = serve(t, m.dir)
			g, err := d.s.allocate(d.file, object{"length": 16 * cluster})
			must(t, err)
			p := make([]byte, 16*cluster)
			fillRandom(d.random, p)
			must(t, d.s.fill(d.file, g.ID, 0, p[:8*cluster]))
			must(t, d.s.update(d.file, []object{target(mib, 4*cluster, "data", "allocation", g.ID, "allocation_offset", 0)}))
			must(t, d.s.flush(d.file))
			test.end(d.s)
			m.checkLeaks(t, d.file, 12)
			test.while(d)
			d.adopt(t)
			d.s = serve(t, m.dir)
			resp := d.s.get(t, imagePath(d.file, "/allocations/"+g.ID))
			resp.Body.Close()
			if test.want != 0 && resp.StatusCode != test.want || resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusNotFound {
				t.Fatalf("the allocation's status is %d, want %d", resp.StatusCode, test.want)
			}
			if resp.StatusCode == http.StatusNotFound {
				err := d.s.update(d.file, []object{target(3*mib, cluster, "data", "allocation", g.ID, "allocation_offset", 4*cluster)})
				mustRefuse(t, err, http.StatusNotFound, "not-found")
			} else {
				must(t, d.s.fill(d.file, g.ID, 8*cluster, p[8*cluster:]))
				must(t, d.s.update(d.file, []object{target(3*mib, 12*cluster, "data", "allocation", g.ID, "allocation_offset", 4*cluster)}))
				copy(d.model[3*mib:], p[4*cluster:])
				must(t, d.s.giveBack(d.file, g.ID))
			}
			// What is allocated from now on is none of it.
			fresh := bytes.Repeat([]byte{0xaa}, int(mib))
			must(t, d.s.put(d.file, 2*mib, fresh, true))
			copy(d.model[2*mib:], fresh)
			must(t, d.verify(0, d.size()))
			d.s.stop()
			m.checkSound(t, d.file)
			d.repairLeaks()
			m.checkClean(t, d.file)
			path, err := convert(m.dir, d.file)
			must(t, err)
			if i := firstDifference(readFile(t, path), d.model); i >= 0 {
				t.Errorf("byte %d differs", i)
			}
		})
	}
}

func (m *maker) repairLeaks() {
	m.t.Helper()
	if out, err := m.try("qemu-img", "check", "-r", "leaks", "-f", "qcow2", m.name+".qcow2"); err != nil {
		m.t.Fatalf("qemu-img check -r leaks: %v\n%s", err, out)
	}
}

// checkLeaks wants that many leaked clusters and nothing else.
func (m *maker) checkLeaks(t *testing.T, file string, leaks int) {
	t.Helper()
	out, err := m.try("qemu-img", "check", "-f", "qcow2", file)
	if exitCode(err) != 3 || !bytes.Contains([]byte(out), fmt.Appendf(nil, "%d leaked clusters were found", leaks)) {
		t.Fatalf("qemu-img check %s: %v, want %d leaks\n%.2000s", file, err, leaks, out)
	}
}

// TestClaims: anchored blocks are claimed, filled and shown; until then nobody
// else writes there, not even after a restart.
func TestClaims(t *testing.T) {
	t.Parallel()
	m := newMaker(t, t.TempDir(), "claimed")
	file := m.create(".qcow2", 4*mib)
	m.io(file, fmt.Sprintf("write -P 1 0 %d", 2*mib), fmt.Sprintf("write -z %d %d", mib, mib))
	m.checkClean(t, file)
	s := serve(t, m.dir)
	before := s.page(t, file, "offset", mib, "length", mib)
	g, err := s.allocate(file, object{"anchored": object{"offset": mib, "length": mib}})
	must(t, err)
	if g.Length != mib || *before.Extents[0].NodeOffset != g.Extents[0].NodeOffset {
		t.Errorf("claimed %+v of %v", g, before.Extents)
	}
	refusesOthers := func() {
		t.Helper()
		for what, err := range map[string]error{
			"write":  s.put(file, mib+100, []byte("x"), false),
			"zero":   s.zero(file, mib, 64*kib, false),
			"trim":   s.trim(file, mib-64*kib, 128*kib),
			"update": s.update(file, []object{target(mib, 64*kib, "unmapped")}),
			"shrink": s.resize(file, mib+512*kib, true),
			"claim": func() error {
				_, err := s.allocate(file, object{"anchored": object{"offset": mib, "length": 64 * kib}})
				return err
			}(),
		} {
			if !isRefusal(err, http.StatusConflict, "conflict") {
				t.Errorf("%s of a claimed range: %v, want 409 conflict", what, err)
			}
		}
		if got, err := s.read(file, mib, mib); err != nil || len(bytes.Trim(got, "\x00")) > 0 {
			t.Errorf("the claimed range does not read as zeros (%v)", err)
		}
	}
	refusesOthers()
	must(t, s.fill(file, g.ID, 0, bytes.Repeat([]byte{2}, int(mib/2))))
	s.stop()
	m.checkClean(t, file) // they are referred to all the while
	s = serve(t, m.dir)
	refusesOthers()
	must(t, s.update(file, []object{target(mib, mib/2, "data", "allocation", g.ID, "allocation_offset", 0)}))
	after := s.page(t, file, "offset", mib, "length", mib/2)
	if *after.Extents[0].Zero || *after.Extents[0].NodeOffset != *before.Extents[0].NodeOffset {
		t.Errorf("after the blocks were shown the map says %v", after.Extents)
	}
	if got, err := s.read(file, mib, mib/2); err != nil || len(bytes.Trim(got, "\x02")) > 0 {
		t.Errorf("the range does not read as what it was filled with (%v)", err)
	}
	must(t, s.giveBack(file, g.ID))
	must(t, s.put(file, mib+mib/2, []byte("free again"), true))
	s.stop()
	m.checkClean(t, file)
}
