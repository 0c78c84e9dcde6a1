package test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A snapshot is one on the wire.
type snapshot struct {
	ID          string `json:"id"`
	Name        string `json:"name"`
	Created     string `json:"created"`
	Size        int64  `json:"size"`
	VMStateSize int64  `json:"vm_state_size"`
	VMClock     string `json:"vm_clock"`
	ICount      *int64 `json:"icount"`
}

func snapshotPath(image, ref, rest string) string {
	return imagePath(image, "/snapshots/"+url.PathEscape(ref)+rest)
}

func (s *server) takeSnapshot(image, name string) (snapshot, error) {
	var made snapshot
	path := imagePath(image, "/snapshots")
	a, err := s.sendJSON(http.MethodPost, path, object{"name": name})
	if err := accepted("POST "+path, a, err, http.StatusCreated); err != nil {
		return made, err
	}
	return made, decodeStrictly(a.body, &made)
}

func (s *server) deleteSnapshot(image, ref string) error {
	path := snapshotPath(image, ref, "")
	a, err := s.send(http.MethodDelete, path, nil)
	return accepted("DELETE "+path, a, err, http.StatusNoContent)
}

func (s *server) revert(image, ref string) error {
	path := snapshotPath(image, ref, "/revert")
	a, err := s.sendJSON(http.MethodPost, path, object{})
	return accepted("POST "+path, a, err, http.StatusOK)
}

func (s *server) listSnapshots(image string) ([]snapshot, error) {
	var list struct {
		Snapshots []snapshot `json:"snapshots"`
	}
	path := imagePath(image, "/snapshots")
	a, err := s.send(http.MethodGet, path, nil)
	if err := accepted("GET "+path, a, err, http.StatusOK); err != nil {
		return nil, err
	}
	return list.Snapshots, decodeStrictly(a.body, &list)
}

// readAs gets all of what has the path.
func (s *server) readWhole(path string) ([]byte, error) {
	a, err := s.send(http.MethodGet, path, nil)
	return a.body, accepted("GET "+path, a, err, http.StatusOK)
}

// qemuSnapshot is what QEMU reads of a snapshot.
func qemuSnapshot(t testing.TB, dir, file, name string) []byte {
	t.Helper()
	out := filepath.Join(t.TempDir(), "snapshot.raw")
	mustTool(t, "qemu-img", "convert", "-l", "snapshot.name="+name, "-f", "qcow2", "-O", "raw", filepath.Join(dir, file), out)
	content, err := os.ReadFile(out)
	must(t, err)
	return content
}

// TestSnapshotsBesideQEMU: each sees the other's snapshots, and reads the same.
func TestSnapshotsBesideQEMU(t *testing.T) {
	for name, options := range map[string][]string{
		"plain": nil, "512": {"cluster_size=512"}, "extended": {"extended_l2=on", "cluster_size=64k"}, "version 2": {"compat=0.10"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const size = 3 * mib
			m := newMaker(t, t.TempDir(), "beside")
			base := m.create("-base.qcow2", 2*mib)
			m.scatter(base, 2*mib, 64*kib, 20)
			file := m.overlay(".qcow2", base, size, options...)
			random := source("snapshots beside QEMU " + name)
			write := func(s *server) {
				t.Helper()
				for range 10 {
					p := make([]byte, 1+random.Int64N(200*kib))
					fillRandom(random, p)
					must(t, s.put(file, random.Int64N(size-int64(len(p))), p, false))
				}
			}
			contents := map[string][]byte{}
			for round := range 3 {
				m.scatter(file, size, 64*kib, 5)
				theirs, ours := fmt.Sprint("theirs", round), fmt.Sprint("our ", round)
				m.run("qemu-img", "snapshot", "-c", theirs, file)
				contents[theirs] = qemuRead(t, m.dir, file, 0, size)
				s := serve(t, m.dir)
				write(s)
				_, err := s.takeSnapshot(file, ours)
				must(t, err)
				contents[ours], err = s.read(file, 0, size)
				must(t, err)
				write(s)
				for name, want := range contents {
					got, err := s.readWhole(snapshotPath(file, name, "/data"))
					must(t, err)
					if !bytes.Equal(got, want) {
						t.Errorf("round %d: %s is served otherwise", round, name)
					}
				}
				s.stop()
				for name, want := range contents {
					if !bytes.Equal(qemuSnapshot(t, m.dir, file, name), want) {
						t.Errorf("round %d: QEMU reads %s otherwise", round, name)
					}
				}
				m.checkClean(t, file)
			}
			m.run("qemu-img", "snapshot", "-d", "our 0", file)
			s := serve(t, m.dir)
			list, err := s.listSnapshots(file)
			must(t, err)
			listed := m.run("qemu-img", "info", "-U", "--output=json", file)
			var info struct {
				Snapshots []struct{ ID, Name string }
			}
			must(t, json.Unmarshal([]byte(listed), &info))
			if len(list) != 5 || len(info.Snapshots) != 5 {
				t.Errorf("%d snapshots, and QEMU has %d", len(list), len(info.Snapshots))
			}
			for k := range info.Snapshots {
				if list[k].ID != info.Snapshots[k].ID || list[k].Name != info.Snapshots[k].Name || list[k].Size != size {
					t.Errorf("%+v, and QEMU has %+v", list[k], info.Snapshots[k])
				}
			}
			must(t, s.revert(file, "theirs1"))
			must(t, s.deleteSnapshot(file, "our 2"))
			s.stop()
			if !bytes.Equal(qemuRead(t, m.dir, file, 0, size), contents["theirs1"]) {
				t.Error("QEMU does not read what was reverted to")
			}
			m.checkClean(t, file)
			m.run("qemu-img", "snapshot", "-a", "our 1", file)
			if !bytes.Equal(qemuRead(t, m.dir, file, 0, size), contents["our 1"]) {
				t.Error("QEMU reverts to something else")
			}
		})
	}
}

// TestRevertOverNBD: who is connected reads what was reverted to; who connects anew
// sees its size.
func TestRevertOverNBD(t *testing.T) {
	m := newMaker(t, t.TempDir(), "nbd-revert")
	file := m.create(".qcow2", 2*mib)
	s := serve(t, m.dir, overNBD()...)
	old := bytes.Repeat([]byte{1}, int(2*mib))
	must(t, s.put(file, 0, old, false))
	_, err := s.takeSnapshot(file, "small")
	must(t, err)
	must(t, s.resize(file, 4*mib, false))
	must(t, s.put(file, 0, bytes.Repeat([]byte{2}, int(4*mib)), false))
	c := s.openNBD(t, file, false)
	if p, err := c.readAll(0, 4*mib); err != nil || bytes.Count(p, []byte{2}) != int(4*mib) {
		t.Errorf("before: %v", err)
	}
	must(t, s.revert(file, "small"))
	if p, err := c.readAll(0, 2*mib); err != nil || !bytes.Equal(p, old) {
		t.Errorf("after: %v", err)
	}
	if _, err := c.readAll(3*mib, 4096); err == nil {
		t.Error("what is beyond the end can be read")
	}
	if out := mustTool(t, "nbdinfo", "--size", s.uri(file)); strings.TrimSpace(out) != fmt.Sprint(2*mib) {
		t.Errorf("the export is %s bytes long", out)
	}
	var image struct {
		Size int64 `json:"size"`
	}
	_, body := s.expect(t, http.StatusOK, imagePath(file, ""))
	must(t, json.Unmarshal(body, &image))
	if page := s.page(t, file); image.Size != 2*mib || page.Extents[len(page.Extents)-1].end() != 2*mib {
		t.Errorf("the image is %d bytes long", image.Size)
	}
}

// TestHostileSnapshots: a snapshot whose tables are no tables is refused or
// reported; the image, and its other snapshots, are served.
func TestHostileSnapshots(t *testing.T) {
	for name, poke := range map[string]struct {
		at   int64 // in the table
		data []byte
	}{
		"l1 is nowhere":   {0, be64(1 << 60)},
		"l1 is askew":     {0, be64(0x30001)},
		"l1 is too large": {8, be32(1 << 31)},
		"l1 is too small": {8, be32(0)},
		"size is mad":     {48, be64(1 << 62)},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMaker(t, t.TempDir(), "hostile")
			file := m.create(".qcow2", mib)
			m.scatter(file, mib, 64*kib, 5)
			m.run("qemu-img", "snapshot", "-c", "bad", file)
			m.run("qemu-img", "snapshot", "-c", "good", file)
			table := int64(0)
			for _, b := range m.peek(file, 64, 8) {
				table = table<<8 | int64(b)
			}
			m.poke(file, table+poke.at, poke.data)
			want := qemuRead(t, m.dir, file, 0, mib)
			s := serve(t, m.dir)
			for _, rest := range []string{"/data", "/extents", "/extents?since=good"} {
				s.expectProblem(t, http.StatusUnprocessableEntity, "corrupt-image", snapshotPath(file, "bad", rest))
			}
			s.expectProblem(t, http.StatusUnprocessableEntity, "corrupt-image", imagePath(file, "/extents?since=bad"))
			for _, path := range []string{imagePath(file, "/data"), snapshotPath(file, "good", "/data")} {
				if got, err := s.readWhole(path); err != nil || !bytes.Equal(got, want) {
					t.Errorf("%s: %v", path, err)
				}
			}
		})
	}
}
