package main

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// A socket has the mode that was asked for, whatever the umask.
func TestSocketMode(t *testing.T) {
	for _, mask := range []int{0, 0o022, 0o077} {
		for _, mode := range []fs.FileMode{0o600, 0o660, 0o666} {
			path := filepath.Join(t.TempDir(), "s")
			old := syscall.Umask(mask)
			l, err := bind(t.Context(), "unix:"+path, mode)
			syscall.Umask(old)
			if err != nil {
				t.Fatal(err)
			}
			info, err := os.Stat(path)
			if err != nil || info.Mode() != mode|fs.ModeSocket {
				t.Errorf("umask %#o: mode %v, want %v: %v", mask, info.Mode(), mode, err)
			}
			if err := l.Close(); err != nil {
				t.Error(err)
			}
			if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the socket is left behind: %v", err)
			}
		}
	}
}

// TestSocketTaken: a socket whose server was killed is replaced. One that is in
// use, and what is no socket, stays.
func TestSocketTaken(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	dead.Close()
	l, err := bind(t.Context(), "unix:"+path, 0o660)
	if err != nil {
		t.Fatalf("in place of a dead one: %v", err)
	}
	defer l.Close()
	if second, err := bind(t.Context(), "unix:"+path, 0o660); err == nil {
		second.Close()
		t.Error("two listen there")
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatalf("the first is gone: %v", err)
	}
	c.Close()
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := bind(t.Context(), "unix:"+file, 0o660); err == nil {
		t.Error("a file is listened on")
	}
	if text, err := os.ReadFile(file); err != nil || string(text) != "mine" {
		t.Errorf("the file: %q, %v", text, err)
	}
	long := "unix:" + filepath.Join(t.TempDir(), strings.Repeat("x", 100))
	if _, err := bind(t.Context(), long, 0o660); err == nil || !strings.Contains(err.Error(), "107") {
		t.Errorf("a path that is too long: %v", err)
	}
}

// TestStopSocket: a successor may have the name of a socket before the last who
// connected to the old one has been accepted.
func TestStopSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := bind(t.Context(), "unix:"+path, 0o660)
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := l.stop(); err != nil {
		t.Fatal(err)
	}
	next, err := bind(t.Context(), "unix:"+path, 0o660)
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	accepted, err := l.Accept()
	if err != nil {
		t.Fatalf("who had connected: %v", err)
	}
	accepted.Close()
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after the last: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if c, err := net.Dial("unix", path); err != nil {
		t.Errorf("the successor: %v", err)
	} else {
		c.Close()
	}
}

// TestStop: everybody whose connection stands when a listener stops is accepted,
// however many there are, and nobody else connects.
func TestStop(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "unix:" + filepath.Join(t.TempDir(), "s")} {
		t.Run(address, func(t *testing.T) {
			l, err := bind(t.Context(), address, 0o660)
			if err != nil {
				t.Fatal(err)
			}
			connected, accepted, ended := connectors(t, l)
			for connected.Load() < 200 || accepted.Load() < 180 { // they are under way
				time.Sleep(time.Millisecond)
			}
			if err := l.stop(); err != nil {
				t.Fatal(err)
			}
			for {
				c, err := l.Accept()
				if errors.Is(err, net.ErrClosed) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				accepted.Add(1)
				c.Close()
			}
			if err := l.Close(); err != nil {
				t.Error(err)
			}
			ended()
			if connected.Load() != accepted.Load() {
				t.Errorf("%d have connected, %d were accepted", connected.Load(), accepted.Load())
			}
		})
	}
}

// connectors connect until they cannot. A few of them are accepted at first, so
// that there is room for others.
func connectors(t *testing.T, l *listener) (connected, accepted *atomic.Int64, ended func()) {
	ctx, cancel := context.WithCancel(t.Context())
	connected, accepted = new(atomic.Int64), new(atomic.Int64)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			dialer := net.Dialer{Timeout: 5 * time.Second}
			for ctx.Err() == nil {
				c, err := dialer.DialContext(ctx, l.Addr().Network(), l.Addr().String())
				if err != nil {
					return
				}
				connected.Add(1)
				c.Close()
			}
		})
	}
	wg.Go(func() {
		for accepted.Load() < 180 {
			c, err := l.Accept()
			if err != nil {
				t.Error(err)
				return
			}
			accepted.Add(1)
			c.Close()
		}
	})
	return connected, accepted, func() {
		// Who is connecting has no answer, and asks again after a second: it is
		// refused then.
		defer cancel()
		done := make(chan struct{})
		go func() {
			wg.Wait()
			close(done)
		}()
		select {
		case <-done:
		case <-time.After(20 * time.Second):
			t.Error("somebody is still connecting")
		}
		<-done
	}
}
