package test

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/extentd/extentd/storage/nbd/wire"
)

// nbdFlags are what `nbdinfo --can` asks for, and the member of its JSON that says
// the same.
var nbdFlags = map[string]string{
	"cache": "can_cache", "df": "can_df", "fast-zero": "can_fast_zero", "flush": "can_flush", "fua": "can_fua",
	"multi-conn": "can_multi_conn", "trim": "can_trim", "zero": "can_zero",
}

// TestNBDFlags asks for each flag of images that can be written, and of such that
// cannot.
func TestNBDFlags(t *testing.T) {
	t.Parallel()
	m := newMaker(t, t.TempDir(), "x")
	qcow2, raw := m.create(".qcow2", mib), m.raw(".raw", mib)
	content := map[string][]byte{qcow2: readFile(t, m.path(qcow2)), raw: readFile(t, m.path(raw))}
	for _, readOnly := range []bool{false, true} {
		flags := overNBD()
		if readOnly {
			flags = append(flags, "--read-only")
		}
		s := serve(t, m.dir, flags...)
		for _, file := range []string{qcow2, raw} {
			e := nbdExport(t, s.uri(file))
			for name, member := range nbdFlags {
				want := !readOnly || !slices.Contains([]string{"fast-zero", "trim", "zero"}, name)
				if got := nbdSays(t, "--can", name, s.uri(file)); got != want || e[member] != want {
					t.Errorf("read-only %v: %s: can %s: %v and %v, want %v", readOnly, file, name, got, e[member], want)
				}
			}
			for name, want := range map[string]bool{"connect": true, "read": true, "structured-reply": true, "write": !readOnly} {
				if got := nbdSays(t, "--can", name, s.uri(file)); got != want {
					t.Errorf("read-only %v: %s: can %s: %v", readOnly, file, name, got)
				}
			}
			for name, want := range map[string]bool{"read-only": readOnly, "rotational": false, "tls": false} {
				if got := nbdSays(t, "--is", name, s.uri(file)); got != want {
					t.Errorf("read-only %v: %s: is %s: %v", readOnly, file, name, got)
				}
			}
			if readOnly {
				refusesWrites(t, s, file)
			}
		}
	}
	for file, before := range content {
		if !bytes.Equal(readFile(t, m.path(file)), before) {
			t.Errorf("%s was written to", file)
		}
	}
}

// refusesWrites: a client that writes all the same gets EPERM, and the connection
// goes on.
func refusesWrites(t *testing.T, s *server, file string) {
	t.Helper()
	c := s.openNBD(t, file, false)
	for _, cmd := range []wire.Command{wire.CmdWrite, wire.CmdWriteZeroes, wire.CmdTrim} {
		var payload []byte
		if cmd == wire.CmdWrite {
			payload = make([]byte, 512)
		}
		if _, err := c.do(cmd, 0, 0, 512, payload); !isErrno(err, wire.EPERM) {
			t.Errorf("%v of a read-only export: %v", cmd, err)
		}
	}
	for _, cmd := range []wire.Command{wire.CmdRead, wire.CmdCache} {
		_, err := c.do(cmd, 0, 0, 512, nil)
		must(t, err)
	}
	_, err := c.do(wire.CmdFlush, 0, 0, 0, nil)
	must(t, err)
}

// nbdSays is the answer of nbdinfo to yes or no.
func nbdSays(t testing.TB, args ...string) bool {
	t.Helper()
	switch _, _, err := tool("nbdinfo", args...); exitCode(err) {
	case 0:
		return true
	case 2:
		return false
	default:
		t.Fatal(err)
		return false
	}
}

// TestNBDList: the exports are the images that there are, as nbdinfo and qemu-nbd
// list them. The default export is the only image, if it is.
func TestNBDList(t *testing.T) {
	t.Parallel()
	m := newMaker(t, t.TempDir(), "x")
	s := serve(t, m.dir, overNBD("--nbd", "127.0.0.1:0")...)
	if out, _, err := tool("nbdinfo", s.uri("")); err == nil {
		t.Errorf("there is a default export where there is nothing:\n%s", out)
	}
	first := m.create("-0.qcow2", mib)
	if e := nbdExport(t, uriOf(s.nbd[1], "")); fmt.Sprint(e["export-size"]) != fmt.Sprint(mib) {
		t.Errorf("the default export is %v", e)
	}
	exports := []string{first}
	for i := range 250 { // more than a page of them
		exports = append(exports, m.raw(fmt.Sprintf("-%03d.img", i), int64(i)))
	}
	var listed []string
	for _, e := range nbdExports(t, mustTool(t, "nbdinfo", "--list", "--json", "--no-content", s.uri(""))) {
		name, _ := e["export-name"].(string)
		listed = append(listed, name)
	}
	slices.Sort(listed)
	slices.Sort(exports)
	if diff := difference(listed, exports); diff != "" {
		t.Errorf("the exports: %s", diff)
	}
	out := mustTool(t, "qemu-nbd", "--list", "-k", s.socket())
	for _, name := range exports {
		if !strings.Contains(out, "export: '"+name+"'") {
			t.Errorf("qemu-nbd does not list %s", name)
		}
	}
	if _, _, err := tool("nbdinfo", s.uri("")); err == nil {
		t.Error("there is a default export among many")
	}
	if _, _, err := tool("nbdinfo", s.uri("missing.raw")); err == nil {
		t.Error("there is an export without an image")
	}
}

// TestNBDConnections: there is a limit, beyond which connections are closed at
// once; and room again when some go.
func TestNBDConnections(t *testing.T) {
	t.Parallel()
	m := newMaker(t, t.TempDir(), "x")
	file := m.raw(".raw", mib)
	s := serve(t, m.dir, overNBD()...)
	const most = 256
	var clients []*nbdClient
	for range most {
		clients = append(clients, dialNBD(t, s.nbd[0]))
	}
	for range 3 {
		if _, err := tryDialNBD(s.nbd[0]); err == nil {
			t.Fatalf("connection %d is served", most+1)
		}
	}
	must(t, clients[most-1].open(file, false)) // the others live on
	clients[0].conn.Close()
	must(t, eventually(func() error {
		c, err := tryDialNBD(s.nbd[0])
		if err != nil {
			return err
		}
		defer c.conn.Close()
		return c.open(file, true)
	}))
}
