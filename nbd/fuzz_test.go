package nbd_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/extentd/extentd/nbd"
	"github.com/extentd/extentd/storage/nbd/wire"
)

// listener hands out one end of pipes.
type listener struct{ conns chan net.Conn }

func (l *listener) Accept() (net.Conn, error) {
	c, ok := <-l.conns
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}

func (l *listener) Close() error   { return nil }
func (l *listener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "unix"} }

// FuzzConnection feeds a whole connection with bytes: it must end soon after them,
// and nothing must be left of it.
func FuzzConnection(f *testing.F) {
	flags := wire.AppendClientFlags(nil, bothFlags)
	chosen := wire.AppendOption(bytes.Clone(flags), wire.OptGo, goFor("a.raw"))
	full := wire.AppendOption(bytes.Clone(flags), wire.OptExtendedHeaders, nil)
	full = wire.AppendOption(full, wire.OptSetMetaContext, metaFor("a.raw", wire.BaseAllocation, wire.AllocationDepth))
	full = wire.AppendOption(full, wire.OptGo, goFor(""))
	for command := range wire.Command(10) {
		r := wire.Request{Command: command, Offset: 4096, Length: 8192, Cookie: 7, Flags: wire.FlagFUA}
		f.Add(append(bytes.Clone(chosen), header(&r, false)...))
		if command == wire.CmdWrite {
			r.Flags |= wire.FlagPayloadLen
		}
		p := append(bytes.Clone(full), header(&r, true)...)
		if command == wire.CmdWrite {
			p = append(p, make([]byte, 8192)...)
		}
		f.Add(p)
	}
	q := wire.AppendStatusQuery(nil, 4096, []uint32{1})
	r := wire.Request{Command: wire.CmdBlockStatus, Flags: wire.FlagPayloadLen, Length: uint64(len(q))}
	f.Add(append(append(bytes.Clone(full), header(&r, true)...), q...))
	for _, o := range []wire.Option{wire.OptList, wire.OptStartTLS, wire.OptListMetaContext, wire.OptAbort, wire.OptExportName} {
		f.Add(wire.AppendOption(bytes.Clone(flags), o, []byte("a.raw")))
	}
	f.Add([]byte{})
	// An offset in the middle of an option, and zeroes everywhere.
	f.Add(append(bytes.Clone(flags), make([]byte, 100)...))

	v := serve(f, setup{options: nbd.Options{
		MaxMemory: 1, StallTimeout: time.Second, HandshakeTimeout: time.Second, Logger: quiet.Logger,
	}}, raw(f, "a.raw", random(mib)))
	l := &listener{conns: make(chan net.Conn)}
	served := make(chan error)
	go func() { served <- v.Serve(l) }()
	f.Cleanup(func() {
		v.Close()
		close(l.conns)
		if err := <-served; !errors.Is(err, nbd.ErrServerClosed) {
			f.Error(err)
		}
	})
	f.Fuzz(func(t *testing.T, p []byte) {
		ours, theirs := net.Pipe()
		l.conns <- theirs
		read := make(chan error, 1)
		go func() {
			_, err := io.Copy(io.Discard, ours)
			read <- err
		}()
		deadline := time.Now().Add(patience)
		if err := ours.SetDeadline(deadline); err != nil {
			t.Fatal(err)
		}
		_, _ = ours.Write(p) // it may have been cut off
		// Whatever it waits for does not come: it gives up, or is idle.
		_ = ours.SetReadDeadline(time.Now().Add(2 * time.Millisecond)) // likewise
		err := <-read
		ours.Close()
		var timeout net.Error
		if err != nil && (!errors.As(err, &timeout) || !timeout.Timeout()) && !errors.Is(err, io.ErrClosedPipe) {
			t.Error(err)
		}
	})
}
