package test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/extentd/extentd/storage/nbd/wire"
)

var sockets atomic.Int64 // how many nbdSocket has named

// nbdSocket is a path that is short enough, as those of t.TempDir are not.
func nbdSocket() string { return filepath.Join(scratch, fmt.Sprint("nbd-", sockets.Add(1))) }

// overNBD are the flags for NBD on a socket of its own.
func overNBD(flags ...string) []string {
	return append([]string{"--nbd", "unix:" + nbdSocket()}, flags...)
}

// uri is the URI of an export on the first address for NBD.
func (s *server) uri(export string) string { return uriOf(s.nbd[0], export) }

// socket is the path of the first address for NBD.
func (s *server) socket() string {
	u, _ := url.Parse(s.nbd[0])
	return u.Query().Get("socket")
}

func uriOf(address, export string, query ...string) string {
	u, err := url.Parse(address)
	if err != nil {
		panic(err)
	}
	u.Path = "/" + export
	q := u.Query()
	for i := 0; i < len(query); i += 2 {
		q.Set(query[i], query[i+1])
	}
	u.RawQuery = q.Encode()
	return u.String()
}

// openNBD connects and chooses an export.
func (s *server) openNBD(t testing.TB, export string, extended bool) *nbdClient {
	t.Helper()
	c := dialNBD(t, s.nbd[0])
	must(t, c.open(export, extended))
	return c
}

// do sends a request and waits for its reply, which is an error where the server
// says so.
func (c *nbdClient) do(cmd wire.Command, flags wire.Flags, off, length int64, payload []byte) (*nbdReply, error) {
	if err := c.send(cmd, flags, off, length, payload); err != nil {
		return nil, err
	}
	r, err := c.receive()
	switch {
	case err != nil:
		return nil, err
	case r.errno != 0:
		return r, fmt.Errorf("%v of %d bytes at %d: %w: %s", cmd, max(length, int64(len(payload))), off, errnoError(r.errno), r.text)
	case r.covered != len(r.data):
		return r, fmt.Errorf("a read of %d bytes at %d got %d", len(r.data), off, r.covered)
	}
	return r, nil
}

// An errnoError is what the server answered.
type errnoError wire.Errno

func (e errnoError) Error() string { return wire.Errno(e).String() }

func isErrno(err error, want wire.Errno) bool {
	var e errnoError
	return errors.As(err, &e) && wire.Errno(e) == want
}

// readAll reads a range, several requests at a time.
func (c *nbdClient) readAll(off, length int64) ([]byte, error) {
	const step, ahead = 300_000, 8
	first := c.cookie + 1
	data := make([]byte, length)
	for sent, got := int64(0), 0; ; got++ {
		for ; sent < length && len(c.pending) < ahead; sent += step {
			if err := c.send(wire.CmdRead, 0, off+sent, min(step, length-sent), nil); err != nil {
				return nil, err
			}
		}
		if len(c.pending) == 0 {
			return data, nil
		}
		r, err := c.receive()
		switch {
		case err != nil:
			return nil, err
		case r.errno != 0 || r.covered != len(r.data):
			return nil, fmt.Errorf("read: %v %s, %d of %d bytes", r.errno, r.text, r.covered, len(r.data))
		}
		copy(data[int64(r.cookie-first)*step:], r.data)
	}
}

// A flagged is a range of which a context says one thing.
type flagged struct {
	Start, Length int64
	Flags         uint64
}

// joinFlagged joins neighbours that agree.
func joinFlagged(list []flagged) []flagged {
	var out []flagged
	for _, f := range list {
		if n := len(out); n > 0 && out[n-1].Flags == f.Flags && out[n-1].Start+out[n-1].Length == f.Start {
			out[n-1].Length += f.Length
			continue
		}
		out = append(out, f)
	}
	return out
}

// clipFlagged is what a list says of [lo, hi).
func clipFlagged(list []flagged, lo, hi int64) []flagged {
	var out []flagged
	for _, f := range list {
		if start, end := max(f.Start, lo), min(f.Start+f.Length, hi); start < end {
			out = append(out, flagged{start, end - start, f.Flags})
		}
	}
	return out
}

// statusOf asks what all contexts say of a range, as often as it takes, and
// verifies each answer.
func (c *nbdClient) statusOf(off, length int64) (map[string][]flagged, error) {
	all := map[string][]flagged{}
	for at, end := off, off+length; at < end; {
		n := end - at
		if !c.extended {
			n = min(n, gib)
		}
		r, err := c.do(wire.CmdBlockStatus, 0, at, n, nil)
		if err != nil {
			return nil, err
		}
		reach := n // of the context that says least
		for id, name := range c.contexts {
			list := r.status[id]
			if len(list) == 0 {
				return nil, fmt.Errorf("no chunk for %s at %d", name, at)
			}
			var sum int64
			for i, d := range list {
				if sum >= n {
					return nil, fmt.Errorf("%s: a descriptor past %d bytes at %d", name, n, at)
				}
				if i > 0 && list[i-1].Flags == d.Flags {
					return nil, fmt.Errorf("%s: two neighbours say %d", name, d.Flags)
				}
				all[name] = append(all[name], flagged{at + sum, int64(d.Length), d.Flags})
				sum += int64(d.Length)
			}
			reach = min(reach, sum)
		}
		for name := range all {
			all[name] = clipFlagged(all[name], off, at+reach)
		}
		at += reach
	}
	for name := range all {
		all[name] = joinFlagged(all[name])
	}
	return all, nil
}

// allocationOf is what base:allocation should say of extents.
func allocationOf(extents []extent) []flagged {
	var list []flagged
	for _, e := range extents {
		var flags uint64
		if !*e.Alloc {
			flags |= uint64(wire.StateHole)
		}
		if *e.Zero {
			flags |= uint64(wire.StateZero)
		}
		list = append(list, flagged{*e.Offset, *e.Length, flags})
	}
	return joinFlagged(list)
}

// sameFlags wants two lists to say the same.
func sameFlags(t testing.TB, what string, got, want []flagged) {
	t.Helper()
	if diff := difference(joinFlagged(got), joinFlagged(want)); diff != "" {
		t.Fatalf("%s differs: %s", what, diff)
	}
}

// tool runs a program among the served images, with a time limit.
func tool(name string, args ...string) (stdout, stderr string, err error) {
	cmd := exec.Command(name, args...)
	cmd.Dir = served
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Start(); err != nil {
		return "", "", err
	}
	timer := time.AfterFunc(time.Minute, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	if err = cmd.Wait(); err != nil {
		err = fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, errs.String())
	}
	return out.String(), errs.String(), err
}

// mustTool wants it to succeed, and returns what it prints.
func mustTool(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, _, err := tool(name, args...)
	must(t, err)
	return out
}

// nbdMap is `nbdinfo --map` of a context.
func nbdMap(t testing.TB, context string, uri ...string) []flagged {
	t.Helper()
	var lines []struct {
		Offset, Length int64
		Type           uint64
	}
	out := mustTool(t, "nbdinfo", append([]string{"--json", "--map=" + context}, uri...)...)
	if err := json.Unmarshal([]byte(out), &lines); err != nil {
		t.Fatalf("nbdinfo --map: %v\n%s", err, out)
	}
	var list []flagged
	for _, l := range lines {
		list = append(list, flagged{l.Offset, l.Length, l.Type})
	}
	return joinFlagged(list)
}
