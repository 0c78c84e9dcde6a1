package test

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
)

func case112(t *testing.T, _ *maker) {
	for bits := 1; bits <= 64; bits *= 2 {
		t.Run(fmt.Sprint(bits), func(t *testing.T) {
			m := newMaker(t, t.TempDir(), "wide")
			file := m.create(".qcow2", 4*mib, fmt.Sprint("refcount_bits=", bits), "cluster_size=4k")
			s := serve(t, m.dir)
			must(t, s.put(file, 0, bytes.Repeat([]byte{1}, int(mib)), false))
			s.stop()
			m.checkClean(t, file)
			shared := 0
			for i := range 2 {
				if bits > 1 {
					m.run("qemu-img", "snapshot", "-c", fmt.Sprint(i), file)
					shared++
				}
				s := serve(t, m.dir)
				must(t, s.put(file, 1000, bytes.Repeat([]byte{byte(i + 2)}, 100_000), true))
				must(t, s.zero(file, 300_000, 100_000, i == 0))
				must(t, s.trim(file, 512*kib, 256*kib))
				s.stop()
				m.checkClean(t, file)
			}
			if shared > 0 {
				m.run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", "-l", "snapshot.name=0", file, "zero.raw")
				if got := readFile(t, m.path("zero.raw")); len(bytes.Trim(got[:mib], "\x01")) > 0 {
					t.Error("the snapshot was written over")
				}
				for i := range shared {
					m.run("qemu-img", "snapshot", "-d", fmt.Sprint(i), file)
				}
				m.checkClean(t, file)
			}
		})
	}
}

// case121: at 512-byte clusters and 64-bit refcounts a block counts 64 clusters,
// and a cluster of the table 64 blocks: 2 MiB.
func case121(t *testing.T, m *maker) {
	file := m.create(".qcow2", 12*mib, "cluster_size=512", "refcount_bits=64")
	s := serve(t, m.dir)
	random := source("121")
	want := make([]byte, 12*mib)
	fillRandom(random, want)
	for at := int64(0); at < 12*mib; at += 2 * mib {
		must(t, s.put(file, at, want[at:at+2*mib], at%(4*mib) == 0))
	}
	s.stop()
	m.checkClean(t, file)
	path, err := convert(m.dir, file)
	must(t, err)
	if i := firstDifference(readFile(t, path), want); i >= 0 {
		t.Errorf("byte %d differs", i)
	}
	if now := m.peek(file, 56, 4); bytes.Equal(now, be32(1)) {
		t.Error("the refcount table did not grow, which tests nothing")
	}
}

func case125(t *testing.T, _ *maker) {
	for _, preallocation := range []string{"off", "metadata", "falloc", "full"} {
		for _, options := range [][]string{nil, {"cluster_size=512"}, {"data_file=grown-data.raw"}, {"compat=0.10"}} {
			t.Run(fmt.Sprint(preallocation, options), func(t *testing.T) {
				m := newMaker(t, t.TempDir(), "grown")
				file := m.create(".qcow2", mib, append(options, "preallocation="+preallocation)...)
				s := serve(t, m.dir)
				must(t, s.put(file, mib-512, bytes.Repeat([]byte{1}, 512), false))
				must(t, s.resize(file, 3*mib+512, false))
				must(t, s.put(file, 3*mib, bytes.Repeat([]byte{2}, 512), true))
				got, err := s.read(file, 0, 3*mib+512)
				must(t, err)
				want := make([]byte, 3*mib+512)
				copy(want[mib-512:], bytes.Repeat([]byte{1}, 512))
				copy(want[3*mib:], bytes.Repeat([]byte{2}, 512))
				if i := firstDifference(got, want); i >= 0 {
					t.Errorf("byte %d differs", i)
				}
				s.stop()
				m.checkClean(t, file)
				path, err := convert(m.dir, file)
				must(t, err)
				if i := firstDifference(readFile(t, path), want); i >= 0 {
					t.Errorf("QEMU: byte %d differs", i)
				}
			})
		}
	}
}

// case154 is every way in which zeros can begin and end inside clusters, over
// data, over nothing and over zeros of the backing.
func case154(t *testing.T, _ *maker) {
	kinds := twinKinds()
	for _, name := range []string{"over raw", "over qcow2", "over short", "v2 over", "v3", "extended over"} {
		for _, anchor := range []bool{false, true} {
			t.Run(fmt.Sprint(name, anchor), func(t *testing.T) {
				w := newTwin(t, "zeroed", kinds[name])
				const c = 64 * kib
				at := int64(0)
				for _, r := range [][2]int64{
					{0, 2 * kib},
					{2 * kib, 4 * kib},
					{c - 2*kib, 2 * kib},
					{c - 2*kib, 4 * kib},
					{2 * kib, c},
					{c - 2*kib, c + 4*kib},
					{0, c},
					{0, c + 2*kib},
					{2 * kib, 3*c - 2*kib},
				} {
					w.doZero(at+r[0], r[1], anchor)
					at += 4 * c
				}
				// Where the backing ends, and behind it.
				w.doZero(2*mib-2*kib, 4*kib, anchor)
				w.doZero(4*mib-2*kib, 2*kib, anchor)
				w.finish(t, !strings.Contains(name, "extended"))
			})
		}
	}
}

func case179(t *testing.T, m *maker) {
	w := newTwin(t, "unmapped", twinKinds()["v3"])
	const c = 64 * kib
	w.doWrite(0, 8*c, 1)
	w.doZero(0, 2*c, true)
	w.doZero(2*c, 2*c, false)
	w.doZero(10*c, 2*c, true)
	w.doZero(14*c, 2*c, false)
	w.doTrim(4*c, c)
	w.finish(t, true)
	// What is zero already is not written again.
	s := serve(t, w.dir)
	must(t, s.zero(w.ours, 0, 512, false)) // opens it for writing
	must(t, s.flush(w.ours))
	before, err := os.Stat(w.path(w.ours))
	must(t, err)
	must(t, s.zero(w.ours, 10*c, c, true))
	must(t, s.zero(w.ours, 14*c, 2*c, false))
	must(t, s.zero(w.ours, 14*c+100, 1000, false))
	must(t, s.trim(w.ours, 4*c, c))
	must(t, s.flush(w.ours))
	after, err := os.Stat(w.path(w.ours))
	must(t, err)
	if !after.ModTime().Equal(before.ModTime()) || after.Size() != before.Size() {
		t.Error("zeroing what is zero wrote to the file")
	}
}

// case214: compressed clusters share host clusters; each that is written over,
// discarded or zeroed gives back what only it used.
func case214(t *testing.T, m *maker) {
	for _, cluster := range []int64{512, 4 * kib, 64 * kib, 2 * mib} {
		source := m.raw(fmt.Sprint("-source-", cluster, ".raw"), 8*cluster)
		m.io(source, m.write(0, 8*cluster))
		file := m.file(fmt.Sprint("-", cluster, ".qcow2"))
		m.run("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", fmt.Sprint("cluster_size=", cluster), source, file)
		want := readFile(t, m.path(source))
		s := serve(t, m.dir)
		for i := range int64(6) {
			at := i * cluster
			switch i % 3 {
			case 0:
				must(t, s.put(file, at+100, []byte("rewritten"), false))
				copy(want[at+100:], "rewritten")
			case 1:
				must(t, s.trim(file, at, cluster))
				clear(want[at : at+cluster])
			case 2:
				must(t, s.zero(file, at, cluster, i > 3))
				clear(want[at : at+cluster])
			}
		}
		s.stop()
		m.checkClean(t, file)
		path, err := convert(m.dir, file)
		must(t, err)
		if i := firstDifference(readFile(t, path), want); i >= 0 {
			t.Errorf("clusters of %d: byte %d differs", cluster, i)
		}
	}
}

func case244(t *testing.T, m *maker) {
	for _, raw := range []string{"off", "on"} {
		data := "data-" + raw + ".raw"
		file := m.create("-"+raw+".qcow2", 4*mib, "data_file="+data, "data_file_raw="+raw)
		s := serve(t, m.dir)
		must(t, s.put(file, mib, bytes.Repeat([]byte{1}, int(mib)), false))
		must(t, s.zero(file, mib+64*kib, 64*kib, false))
		must(t, s.zero(file, mib+128*kib, 64*kib, true))
		must(t, s.trim(file, mib+256*kib, 64*kib))
		must(t, s.put(file, mib+100, []byte("in place"), true))
		s.stop()
		m.checkClean(t, file)
		want := make([]byte, 4*mib)
		copy(want[mib:], bytes.Repeat([]byte{1}, int(mib)))
		clear(want[mib+64*kib : mib+192*kib])
		clear(want[mib+256*kib : mib+320*kib])
		copy(want[mib+100:], "in place")
		path, err := convert(m.dir, file)
		must(t, err)
		if i := firstDifference(readFile(t, path), want); i >= 0 {
			t.Errorf("data_file_raw=%s: byte %d differs", raw, i)
		}
		content := readFile(t, m.path(data))
		if raw == "on" {
			if i := firstDifference(content, want); i >= 0 {
				t.Errorf("byte %d of the raw data file differs from the disk", i)
			}
		} else if !bytes.Equal(content[mib+100:mib+108], []byte("in place")) {
			t.Error("the data file does not hold the data at the guest's offset")
		}
	}
}

// case246: bitmaps are kept up to date, over resizes too; one that is not enabled
// stays as it is.
func case246(t *testing.T, m *maker) {
	for name, change := range map[string]func(s *server, file string) error{
		"write":  func(s *server, file string) error { return s.put(file, 0, []byte("x"), true) },
		"grow":   func(s *server, file string) error { return s.resize(file, 2*mib, false) },
		"shrink": func(s *server, file string) error { return s.resize(file, mib/2, true) },
	} {
		for _, state := range []string{"enabled", "disabled"} {
			file := m.create("-"+name+"-"+state+".qcow2", mib)
			m.run("qemu-img", "bitmap", "--add", "-f", "qcow2", file, "b")
			if state == "disabled" {
				m.run("qemu-img", "bitmap", "--disable", "-f", "qcow2", file, "b")
			}
			s := serve(t, m.dir)
			must(t, change(s, file))
			s.stop()
			data := qemuInfo(t, m.dir, file)["format-specific"].(map[string]any)["data"].(map[string]any)
			if list, _ := data["bitmaps"].([]any); len(list) != 1 || strings.Contains(fmt.Sprint(list[0]), "in-use") {
				t.Errorf("after a %s beside a bitmap that is %s the bitmaps are %v", name, state, list)
			}
			m.checkClean(t, file)
			if dirty := qemuDirty(t, m, file, "b")[0].Flags == 1; name == "write" && dirty != (state == "enabled") {
				t.Errorf("a write beside a bitmap that is %s: recorded %v", state, dirty)
			}
			m.io(file, "write 0 512") // QEMU goes on
			m.checkClean(t, file)
		}
	}
}

func case250(t *testing.T, _ *maker) {
	m := newMaker(t, t.TempDir(), "vast")
	file := m.create(".qcow2", 6*gib)
	s := serve(t, m.dir)
	for _, at := range []int64{0, 2*gib - 64*kib, 2 * gib, 4 * gib, 6*gib - 64*kib} {
		must(t, s.put(file, at, bytes.Repeat([]byte{1}, int(64*kib)), false))
	}
	must(t, s.trim(file, 64*kib, 6*gib-128*kib))
	for at, want := range map[int64]byte{0: 1, 2*gib - 64*kib: 0, 2 * gib: 0, 4 * gib: 0, 6*gib - 64*kib: 1} {
		if got, err := s.read(file, at, 512); err != nil || got[0] != want {
			t.Errorf("at %d there is %v (%v), want %d", at, got[:1], err, want)
		}
	}
	must(t, s.zero(file, 0, 6*gib, false))
	extents := s.stream(t, file)
	s.stop()
	m.checkClean(t, file)
	for _, e := range extents {
		if !*e.Zero {
			t.Errorf("zeroed, but the map says %v", e)
		}
	}
}

func case271(t *testing.T, _ *maker) {
	kinds := twinKinds()
	for _, name := range []string{"extended", "extended over"} {
		t.Run(name, func(t *testing.T) {
			w := newTwin(t, "sub", kinds[name])
			const c, sub = 64 * kib, 2 * kib
			w.doWrite(3*sub, sub, 1)         // one subcluster
			w.doWrite(c+5*sub+100, 200, 2)   // inside one
			w.doWrite(2*c+sub-100, 200, 3)   // over an edge
			w.doWrite(3*c, c, 4)             // whole
			w.doWrite(4*c+sub/2, c, 5)       // two clusters
			w.doZero(3*c+4*sub, 4*sub, true) // inside data
			w.doZero(3*c+12*sub, 4*sub, false)
			w.doZero(6*c+4*sub, 4*sub, true)
			w.doZero(7*c+4*sub, 4*sub, false)
			w.doWrite(6*c+5*sub, sub, 6) // over zeros
			w.doWrite(7*c+5*sub+10, sub, 7)
			w.doTrim(3*c, c)
			w.doWrite(3*c+sub, sub, 8)
			w.doTrim(4*c, 2*c)
			w.finish(t, false)
		})
	}
}

func case274(t *testing.T, m *maker) {
	base := m.create("-base.qcow2", 4*mib)
	m.io(base, "write -P 1 0 4M")
	for _, options := range [][]string{nil, {"extended_l2=on"}, {"cluster_size=4k"}} {
		file := m.overlay(fmt.Sprintf("-%v.qcow2", len(options)+len(fmt.Sprint(options))), base, mib+3*kib, options...)
		s := serve(t, m.dir)
		must(t, s.resize(file, 3*mib, false))
		got, err := s.read(file, 0, 3*mib)
		must(t, err)
		if len(bytes.Trim(got[:mib+3*kib], "\x01")) > 0 {
			t.Errorf("options %v: what was there before the growth has changed", options)
		}
		if i := firstDifference(got[mib+3*kib:], make([]byte, 2*mib-3*kib)); i >= 0 {
			t.Errorf("options %v: the backing shows through at %d", options, mib+3*kib+int64(i))
		}
		s.stop()
		m.checkClean(t, file)
		if got := qemuRead(t, m.dir, file, mib+3*kib, 2*mib-3*kib); firstDifference(got, make([]byte, len(got))) >= 0 {
			t.Errorf("options %v: for QEMU the backing shows through", options)
		}
	}
}

func case290(t *testing.T, _ *maker) {
	kinds := twinKinds()
	for _, name := range []string{"v2", "v3", "v2 over", "over raw"} {
		t.Run(name, func(t *testing.T) {
			w := newTwin(t, "discarded", kinds[name])
			w.doWrite(0, mib, 1)
			if name == "v2 over" {
				// The backing would show through: it is refused, and the data stays.
				mustRefuse(t, w.s.trim(w.ours, 0, 512*kib), http.StatusUnprocessableEntity, "unsupported-feature")
				got, err := w.s.read(w.ours, 0, 512*kib)
				must(t, err)
				if len(bytes.Trim(got, "\x01")) > 0 {
					t.Error("a discard that was refused changed the data")
				}
				w.s.stop()
				w.checkClean(t, w.ours)
				return
			}
			w.doTrim(0, 512*kib)
			w.doTrim(768*kib, 64*kib)
			w.finish(t, true)
		})
	}
}

// case313: one request frees clusters of many refcount blocks.
func case313(t *testing.T, m *maker) {
	file := m.create(".qcow2", 16*mib, "cluster_size=512", "refcount_bits=64")
	m.io(file, "write -P 1 0 16M")
	s := serve(t, m.dir)
	must(t, s.trim(file, 512, 16*mib-1024))
	must(t, s.put(file, 4*mib, bytes.Repeat([]byte{2}, int(4*mib)), true))
	s.stop()
	m.checkClean(t, file)
	if got := qemuRead(t, m.dir, file, 4*mib, 4*mib); len(bytes.Trim(got, "\x02")) > 0 {
		t.Error("what was written is not there")
	}
}
