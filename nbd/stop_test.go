package nbd_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/extentd/extentd/nbd"
	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage/nbd/wire"
)

// gated is an image of which a flush waits until the gate is opened.
func gated(t *testing.T) (opt service.Options, entered chan struct{}, open func()) {
	t.Helper()
	entered = make(chan struct{}, 100)
	gate := make(chan struct{})
	open = sync.OnceFunc(func() { close(gate) })
	return with(hooked{flush: func() error {
		entered <- struct{}{}
		<-gate
		return nil
	}}), entered, open
}

func TestShutdown(t *testing.T) {
	opt, entered, open := gated(t)
	v := serve(t, setup{service: opt}, raw(t, "a.raw", random(mib)))
	defer open()
	idle, busy, half, asking := v.open(t, "a.raw", simple), v.open(t, "a.raw", structured), v.open(t, "a.raw", simple), v.greet(t)
	busy.writeAt([]byte("abc"), 0)
	cookie := busy.send(wire.Request{Command: wire.CmdFlush}, nil)
	<-entered
	payload := bytes.Repeat([]byte{7}, 100_000)
	r := wire.Request{Command: wire.CmdWrite, Cookie: 77, Length: uint64(len(payload))}
	half.write(append(header(&r, false), payload[:50_000]...))
	time.Sleep(100 * time.Millisecond) // for the server to see that
	ended := make(chan error, 1)
	go func() { ended <- v.Shutdown(t.Context()) }()
	idle.gone()
	asking.want(wire.OptInfo, goFor("a.raw"), wire.RepErrShutdown)
	asking.want(wire.OptAbort, nil, wire.RepAck)
	asking.gone()
	if _, err := net.Dial(v.network, v.address); err == nil {
		t.Error("it listens still")
	}
	half.write(payload[50_000:]) // it has begun
	if res := half.reply(0, 0); res.errno != 0 || res.cookie != 77 {
		t.Errorf("%+v", res)
	}
	half.gone()
	select {
	case err := <-ended:
		t.Fatal("it did not wait:", err)
	case <-time.After(50 * time.Millisecond):
	}
	open()
	if res := busy.reply(0, 0); res.errno != 0 || res.cookie != cookie {
		t.Errorf("%+v", res)
	}
	busy.gone()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	l, err := net.Listen("unix", filepath.Join(v.dir, ".other"))
	if err != nil {
		t.Fatal(err)
	}
	if err := v.Serve(l); !errors.Is(err, nbd.ErrServerClosed) {
		t.Error(err)
	}
}

// TestCutOff: what does not end in time is cut off, and Shutdown waits for it
// still.
func TestCutOff(t *testing.T) {
	opt, entered, open := gated(t)
	v := serve(t, setup{service: opt}, raw(t, "a.raw", random(mib)))
	defer open()
	c := v.open(t, "a.raw", simple)
	c.writeAt([]byte("abc"), 0)
	c.send(wire.Request{Command: wire.CmdFlush}, nil)
	<-entered
	silent := v.greet(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	go func() {
		c.gone()
		open()
	}()
	if err := v.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	silent.gone()
}

func TestManyConnections(t *testing.T) {
	v := serve(t, setup{options: nbd.Options{MaxConnections: 3, Logger: quiet.Logger}}, raw(t, "a.raw", random(512)))
	var all []*client
	for range 3 {
		all = append(all, v.open(t, "a.raw", simple))
	}
	nc, err := net.Dial(v.network, v.address)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	(&client{t: t, nc: nc}).gone()
	all[0].nc.Close()
	eventually(t, "a place is free", func() bool {
		nc, err := net.Dial(v.network, v.address)
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		n, _ := nc.Read(make([]byte, 1))
		return n > 0
	})
	all[1].alive()
}

// TestStall: a client that takes no replies, or sends half a payload, is cut off;
// one that does nothing is not, nor one that is slow.
func TestStall(t *testing.T) {
	const stall = 300 * time.Millisecond
	v := serve(t, setup{options: nbd.Options{StallTimeout: stall, MaxMemory: 64 << 20}}, tools(t, "truncate -s 64M a.raw"))
	deaf, half, slow, idle := v.open(t, "a.raw", simple), v.open(t, "a.raw", simple), v.open(t, "a.raw", simple), v.open(t, "a.raw", structured)
	for range 20 {
		deaf.write(header(&wire.Request{Command: wire.CmdRead, Length: 8 << 20}, false))
	}
	r := wire.Request{Command: wire.CmdWrite, Length: 1 << 20}
	half.write(append(header(&r, false), make([]byte, 1000)...))
	go func() {
		p := make([]byte, 1<<20)
		_, _ = slow.nc.Write(header(&r, false)) // the reply tells
		for i := range 10 {
			time.Sleep(stall / 5)
			_, _ = slow.nc.Write(p[i<<20/10 : (i+1)<<20/10])
		}
	}()
	half.gone()
	if res := slow.reply(0, 0); res.errno != 0 {
		t.Error(res.errno)
	}
	eventually(t, "who takes nothing is cut off", func() bool {
		if err := deaf.nc.SetWriteDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		_, err := deaf.nc.Write([]byte{0})
		return err != nil && !errors.Is(err, os.ErrDeadlineExceeded)
	})
	idle.alive()
	slow.alive()
}

// TestMemory: more is asked for than there is memory, and all is answered.
func TestMemory(t *testing.T) {
	v := serve(t, setup{options: nbd.Options{MaxMemory: 1, MaxInFlight: 8}}, tools(t, "truncate -s 64M a.raw"))
	done := make(chan struct{})
	const conns = 4
	for i := range conns {
		c := v.open(t, "a.raw", modes[i%3])
		go func() {
			defer func() { done <- struct{}{} }()
			for range 4 {
				r := wire.Request{Command: wire.CmdRead, Cookie: 1, Length: 16 << 20, Flags: 0}
				if c.structured {
					r.Flags = wire.FlagDF
				}
				_, _ = c.nc.Write(header(&r, c.extended)) // likewise
			}
		}()
		go func() {
			defer func() { done <- struct{}{} }()
			for range 4 {
				if res := c.reply(0, 16<<20); res.errno != 0 {
					t.Error(res.errno)
				}
			}
		}()
	}
	for range 2 * conns {
		<-done
	}
}
