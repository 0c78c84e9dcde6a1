package test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/extentd/extentd/storage/nbd/wire"
)

// terminate sends SIGTERM and returns at once: ended waits. A second one would
// kill it.
func (s *server) terminate(t testing.TB) {
	t.Helper()
	must(t, s.cmd.Process.Signal(syscall.SIGTERM))
}

// ended wants a clean exit within a time.
func (s *server) ended(t testing.TB, within time.Duration) {
	t.Helper()
	select {
	case err := <-s.exited:
		if err != nil {
			t.Errorf("extentd after SIGTERM: %v", err)
		}
		s.exited = nil
		s.checkLog()
	case <-time.After(within):
		t.Errorf("extentd still runs %v after SIGTERM", within)
	}
}

// ended reports whether the server closed the connection after a whole reply.
func ended(err error) bool {
	return !errors.Is(err, errMidway) && (errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET))
}

// TestNBDDrain: what is under way when the server is told to stop is done and
// answered, further requests are not served, and the process ends cleanly, soon.
func TestNBDDrain(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	m := newMaker(t, dir, "x")
	m.create(".qcow2", 4*mib)
	s := serveConfig(t, dir, `
images:
  - name: slow
    format: qcow2
    node: {file: {path: x.qcow2}}
    filters: [{delay: {write: 300ms, read: 200ms}}]
`, overNBD()...)
	var clients []*nbdClient
	want := make([]byte, 4*mib)
	for i := range 3 {
		c := s.openNBD(t, "slow", i == 0)
		clients = append(clients, c)
	}
	waiting := dialNBD(t, s.nbd[0]) // negotiates
	silent := dialNBD(t, s.nbd[0])
	const requests = 8
	for i, c := range clients {
		for j := range requests {
			off := int64(i*requests+j) * 64 * kib
			must(t, c.send(wire.CmdWrite, 0, off, 0, stamped(off, 16*kib, 1)))
		}
	}
	time.Sleep(150 * time.Millisecond) // some are under way by now, and none is done
	s.terminate(t)
	must(t, eventually(func() error {
		if c, err := tryDialNBD(s.nbd[0]); err == nil {
			c.conn.Close()
			return fmt.Errorf("a connection is accepted after SIGTERM")
		}
		return nil
	}))
	if r := waiting.last(t, wire.OptList, nil); r != wire.RepErrShutdown {
		t.Errorf("an option after SIGTERM is answered with %#x", uint32(r))
	}
	for i, c := range clients {
		served := 0
		for range requests {
			r, err := c.receive()
			if ended(err) {
				break // there was more, which nobody has read
			}
			must(t, err)
			switch r.errno {
			case 0:
				served++
				copy(want[r.off:], stamped(int64(r.off), 16*kib, 1))
			case wire.ESHUTDOWN: // came too late
			default:
				t.Errorf("client %d: %v: %s", i, r.errno, r.text)
			}
		}
		if served == 0 {
			t.Errorf("client %d: nothing that was under way was answered", i)
		}
		if p, err := c.read(1); err == nil {
			t.Errorf("client %d: %x after the last reply", i, p)
		}
		c.conn.Close()
	}
	if p, err := silent.read(1); err == nil {
		t.Errorf("%x without an option", p)
	}
	s.ended(t, 5*time.Second)
	m.checkClean(t, "x.qcow2")
	must(t, os.WriteFile(m.path("want"), want, 0o600))
	m.run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", "x.qcow2", "want")
}

// TestNBDDrainBesideHTTP: a download that nobody reads does not cost those their
// replies who use NBD.
func TestNBDDrainBesideHTTP(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	m := newMaker(t, dir, "x")
	m.raw(".raw", 64*mib)
	s := serveConfig(t, dir, `
images:
  - name: slow
    format: raw
    node: {file: {path: x.raw}}
    filters: [{delay: {write: 500ms}}]
`, overNBD()...)
	resp := s.get(t, imagePath("slow", "/data"))
	defer resp.Body.Close()
	c := s.openNBD(t, "slow", false)
	s.terminate(t)
	refused, answered := false, 0
	for deadline := time.Now().Add(14 * time.Second); time.Now().Before(deadline) && !refused; {
		if err := c.send(wire.CmdWrite, 0, 0, 0, make([]byte, 512)); err != nil {
			break
		}
		r, err := c.receive()
		if err != nil {
			break
		}
		refused = r.errno == wire.ESHUTDOWN
		answered++
	}
	if answered > 4 {
		t.Errorf("%d requests of half a second, one after another, were served after SIGTERM", answered)
	}
	_ = resp.Body.Close()
	s.ended(t, 13*time.Second)
}

// TestNBDDrainCopy stops the server while nbdcopy, fio and qemu-io are at work.
// They see errors, and the images are clean.
func TestNBDDrainCopy(t *testing.T) {
	t.Parallel()
	m := newMaker(t, t.TempDir(), "x")
	const size = 64 * mib
	source := filepath.Join(scratch, "drain-source")
	must(t, os.WriteFile(source, bytes.Repeat([]byte("extentd "), int(size/8)), 0o600))
	defer func() { _ = os.Remove(source) }()
	files := []string{m.create("-0.qcow2", size), m.create("-1.qcow2", size, "cluster_size=4k"), m.raw("-2.raw", size)}
	s := serve(t, m.dir, overNBD()...)
	done := make(chan error, 4)
	for i, file := range files {
		go func() {
			var err error
			for err == nil { // until the server is gone
				_, _, err = tool("nbdcopy", "--requests=4", "--request-size=65536", fmt.Sprint("--connections=", 1+3*i), source, s.uri(file))
			}
			done <- nil
		}()
	}
	go func() {
		_, _, err := tool("fio", fioArgs(t, s.uri(files[1]), size, "--rw=randwrite --bs=4k --iodepth=32 --time_based --runtime=60")...)
		if err == nil {
			err = fmt.Errorf("fio did not see that its server stopped")
		} else {
			err = nil
		}
		done <- err
	}()
	time.Sleep(700 * time.Millisecond)
	began := time.Now()
	s.stop() // wants exit code 0
	if d := time.Since(began); d > 8*time.Second {
		t.Errorf("it took %v to stop", d)
	}
	for range 4 {
		must(t, <-done)
	}
	m.checkClean(t, files[:2]...)
	again := serve(t, m.dir, overNBD()...)
	for _, file := range files {
		nbdExport(t, again.uri(file))
	}
}

// TestNBDDrainPipelined: a client that asks for much and takes its time gets
// whole replies, and then the end of the stream: none is cut off in its middle.
func TestNBDDrainPipelined(t *testing.T) {
	for i, name := range []string{"unix", "tcp"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMaker(t, t.TempDir(), "x")
			file := m.raw(".raw", 32*mib)
			m.io(file, "write -P 7 0 32M") // holes would be short replies
			s := serve(t, m.dir, overNBD("--nbd", "127.0.0.1:0")...)
			c := dialNBD(t, s.nbd[i])
			must(t, c.open(file, false))
			done := make(chan struct{})
			go func() {
				// Written past nbdClient, which is not for two at a time.
				var p [wire.RequestSize]byte
				var err error
				for n := uint64(1); n < 4000 && err == nil; n++ {
					wire.PutRequest(p[:], &wire.Request{Command: wire.CmdRead, Cookie: n, Offset: n << 13, Length: 1 << 13, Flags: wire.FlagDF}, false)
					_, err = c.conn.Write(p[:])
				}
				close(done) // it may have failed: the server goes
			}()
			for n := uint64(1); n < 4000; n++ {
				c.pending[n] = &nbdReply{cookie: n, off: n << 13, data: make([]byte, 1<<13)}
			}
			time.Sleep(200 * time.Millisecond)
			s.terminate(t)
			time.Sleep(200 * time.Millisecond)
			whole, end := 0, error(nil)
			for ; end == nil; whole++ {
				var r *nbdReply
				if r, end = c.receive(); end == nil && r.errno != 0 && r.errno != wire.ESHUTDOWN {
					t.Errorf("%v: %s", r.errno, r.text)
				}
			}
			if whole--; whole == 0 || !ended(end) {
				t.Errorf("after %d replies: %v, want the end of the stream", whole, end)
			}
			_ = c.conn.Close()
			<-done
			t.Logf("%d replies", whole)
			s.ended(t, 8*time.Second)
		})
	}
}
