package test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
)

// A bitmap is what the server says of one.
type bitmap struct {
	Name         string `json:"name"`
	Granularity  int64  `json:"granularity"`
	Enabled      bool   `json:"enabled"`
	InUse        bool   `json:"in_use"`
	Inconsistent bool   `json:"inconsistent"`
	Dirty        *int64 `json:"dirty"`
}

func bitmapPath(image, name, rest string) string {
	return imagePath(image, "/bitmaps/") + url.PathEscape(name) + rest
}

func (s *server) createBitmap(image, name string, granularity int64) error {
	a, err := s.sendJSON(http.MethodPost, imagePath(image, "/bitmaps"), object{"name": name, "granularity": granularity})
	return accepted("POST bitmap "+name, a, err, http.StatusCreated)
}

// bitmaps are those of an image by name.
func (s *server) bitmaps(t testing.TB, image string) map[string]bitmap {
	t.Helper()
	var list struct{ Bitmaps []bitmap }
	s.getJSON(t, &list, imagePath(image, "/bitmaps"))
	all := map[string]bitmap{}
	for _, b := range list.Bitmaps {
		all[b.Name] = b
	}
	return all
}

// changeBitmaps makes changes of any images at once: image, operation and bitmap each.
func (s *server) changeBitmaps(words ...string) error {
	var changes []object
	for i := 0; i < len(words); i += 3 {
		changes = append(changes, object{"image": words[i], "operation": words[i+1], "bitmap": words[i+2]})
	}
	a, err := s.sendJSON(http.MethodPost, "/v1/bitmaps", object{"changes": changes})
	return accepted(fmt.Sprint("POST /v1/bitmaps ", words), a, err, http.StatusNoContent)
}

// dirty is the map of a bitmap over HTTP.
func (s *server) dirty(image, name string) ([]flagged, error) {
	path := imagePath(image, "/extents?dirty="+url.QueryEscape(name))
	a, err := s.send(http.MethodGet, path, nil, "Accept", "application/x-ndjson")
	if err := accepted("GET "+path, a, err, http.StatusOK); err != nil {
		return nil, err
	}
	var list []flagged
	end := int64(0)
	for line := range strings.Lines(string(a.body)) {
		var e struct {
			Offset, Length int64
			Dirty          *bool
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			return nil, err
		}
		if e.Dirty == nil || e.Offset != end || e.Length < 1 {
			return nil, fmt.Errorf("%s: %s after %d", path, line, end)
		}
		end += e.Length
		f := flagged{e.Offset, e.Length, 0}
		if *e.Dirty {
			f.Flags = 1
		}
		list = append(list, f)
	}
	return joinFlagged(list), nil
}

// qemuDirty is the map of a bitmap as qemu-nbd tells it. Nobody may have the image
// open for writing.
func qemuDirty(t testing.TB, m *maker, file, name string) []flagged {
	t.Helper()
	var lines []struct{ Offset, Length, Type int64 }
	out, err := m.stdout("nbdinfo", "--json", "--map=qemu:dirty-bitmap:"+name, "--", "[", "qemu-nbd", "-r", "-f", "qcow2", "-B", name, file, "]")
	must(t, err)
	must(t, json.Unmarshal([]byte(out), &lines))
	var list []flagged
	for _, l := range lines {
		list = append(list, flagged{l.Offset, l.Length, uint64(l.Type)})
	}
	return joinFlagged(list)
}

// sameBitmap compares a bitmap as it is told over HTTP, over NBD, and by qemu-nbd.
func sameBitmap(t testing.TB, s *server, m *maker, file, name string) []flagged {
	t.Helper()
	ours, err := s.dirty(file, name)
	must(t, err)
	sameFlags(t, name+" over HTTP, and as qemu-nbd tells it", ours, qemuDirty(t, m, file, name))
	sameFlags(t, name+" over NBD, and over HTTP", nbdMap(t, "qemu:dirty-bitmap:"+name, s.uri(file)), ours)
	sum := int64(0)
	for _, f := range ours {
		sum += f.Length * int64(f.Flags)
	}
	var b bitmap
	s.getJSON(t, &b, bitmapPath(file, name, ""))
	if b.Dirty == nil || *b.Dirty != sum {
		t.Errorf("%s: %+v, and the map says %d", name, b, sum)
	}
	return ours
}

// TestBitmapsBesideQEMU: bitmaps that QEMU has written are read as qemu-nbd reads
// them, and ours likewise, in images of all kinds and granularities.
func TestBitmapsBesideQEMU(t *testing.T) {
	t.Parallel()
	m := newMaker(t, t.TempDir(), "beside")
	base := m.create("-base.qcow2", 24*mib)
	m.scatter(base, 24*mib, 64*kib, 20)
	for suffix, options := range map[string][]string{
		"-plain.qcow2": nil, "-small.qcow2": {"cluster_size=512"}, "-large.qcow2": {"cluster_size=2M"}, "-extended.qcow2": {"extended_l2=on"},
		"-backed.qcow2": {"backing_file=" + base, "backing_fmt=qcow2"},
		"-data.qcow2":   {"data_file=" + m.file("-data.data"), "data_file_raw=on"},
	} {
		const size = 24*mib + 512
		file := m.create(suffix, size, options...)
		granularities := map[string]string{"fine": "512", "pages": "4096", "usual": "65536", "coarse": "2M", "huge": "1G"}
		for name, granularity := range granularities {
			m.run("qemu-img", "bitmap", "--add", "-g", granularity, file, name)
		}
		m.scatter(file, size, 64*kib, 20)
		m.io(file, fmt.Sprintf("write %d 512", size-512))
		m.run("qemu-img", "bitmap", "--disable", file, "pages")
		s := serve(t, m.dir, overNBD()...)
		for name := range granularities {
			sameBitmap(t, s, m, file, name)
		}
		m.io(s.uri(file), "write 12M 70k", "write -z 13M 64k", "discard 14M 128k", "write 15000000 1")
		must(t, s.zero(file, 16*mib, 100*kib, false))
		must(t, s.put(file, 17*mib+5, []byte("here"), false))
		must(t, s.createBitmap(file, "ours", 16*kib))
		must(t, s.put(file, 18*mib+5, []byte("and here"), true))
		frozen, err := s.dirty(file, "pages")
		must(t, err)
		must(t, s.changeBitmaps(file, "disable", "fine"))
		fine, err := s.dirty(file, "fine")
		must(t, err)
		must(t, s.put(file, 8*mib, make([]byte, 8*mib), true))
		s.stop()
		sameFlags(t, "what QEMU froze", frozen, qemuDirty(t, m, file, "pages"))
		sameFlags(t, "what was frozen here", fine, qemuDirty(t, m, file, "fine"))
		s = serve(t, m.dir, overNBD()...)
		for name := range granularities {
			list := sameBitmap(t, s, m, file, name)
			if got := clipFlagged(list, 18*mib, 18*mib+1); got[0].Flags != 1 && name != "pages" {
				t.Errorf("%s %s: a write is not recorded", file, name)
			}
		}
		sameBitmap(t, s, m, file, "ours")
		s.stop()
		m.checkClean(t, file)
	}
}

// TestBitmapAfterKill: after kill -9 an enabled bitmap is inconsistent for both, what
// was frozen is as good as before, and nothing else is lost. It can be deleted.
func TestBitmapAfterKill(t *testing.T) {
	t.Parallel()
	m := newMaker(t, t.TempDir(), "kill")
	file := m.create(".qcow2", 8*mib)
	s := serve(t, m.dir, overNBD()...)
	must(t, s.createBitmap(file, "frozen", 64*kib))
	must(t, s.put(file, mib, []byte("first"), false))
	must(t, s.changeBitmaps(file, "disable", "frozen", file, "create", "live"))
	before, err := s.dirty(file, "frozen")
	must(t, err)
	must(t, s.put(file, 2*mib, []byte("second"), true))
	if b := s.bitmaps(t, file)["live"]; b.Inconsistent || b.InUse || !b.Enabled || *b.Dirty != 64*kib {
		t.Errorf("while it records: %+v", b)
	}
	s.kill()
	if out := m.run("qemu-img", "info", file); strings.Count(out, "in-use") != 1 {
		t.Errorf("QEMU says %s", out)
	}
	stdout, _, code := verb(t, m.dir, "info", file)
	if code != 0 || strings.Count(stdout, "in-use") != 1 {
		t.Errorf("extentd info: %s", stdout)
	}
	s = serve(t, m.dir, overNBD()...)
	refused := func() {
		t.Helper()
		b := s.bitmaps(t, file)["live"]
		if !b.Inconsistent || !b.InUse || b.Dirty != nil {
			t.Errorf("%+v", b)
		}
		_, err := s.dirty(file, "live")
		mustRefuse(t, err, http.StatusConflict, "conflict")
		for _, operation := range []string{"enable", "disable", "clear"} {
			mustRefuse(t, s.changeBitmaps(file, operation, "live"), http.StatusConflict, "conflict")
		}
		mustRefuse(t, s.createBitmap(file, "live", 64*kib), http.StatusConflict, "exists")
		if out := mustTool(t, "nbdinfo", "--json", s.uri(file)); strings.Contains(out, ":live") || !strings.Contains(out, ":frozen") {
			t.Errorf("over NBD: %s", out)
		}
	}
	refused()
	frozen, err := s.dirty(file, "frozen")
	must(t, err)
	sameFlags(t, "what was frozen", frozen, before)
	for off, want := range map[int64]string{mib: "first", 2 * mib: "second"} {
		got, err := s.read(file, off, int64(len(want)))
		if err != nil || string(got) != want {
			t.Errorf("at %d: %q, %v", off, got, err)
		}
	}
	must(t, s.put(file, 3*mib, []byte("third"), true))
	refused()
	must(t, s.changeBitmaps(file, "delete", "live", file, "create", "live"))
	must(t, s.put(file, 4*mib, []byte("fourth"), true))
	s.stop()
	m.checkClean(t, file)
	sameFlags(t, "the new one", qemuDirty(t, m, file, "live"), []flagged{{0, 4 * mib, 0}, {4 * mib, 64 * kib, 1}, {4*mib + 64*kib, 4*mib - 64*kib, 0}})
}
