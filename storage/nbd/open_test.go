package nbd_test

import (
	"context"
	"errors"
	"io"
	"math"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/nbd"
	"github.com/extentd/extentd/storage/nbd/wire"
)

// Limits are made of what servers say, whatever they say.
func TestLimits(t *testing.T) {
	const mib = 1 << 20
	for _, c := range []struct {
		name                        string
		size                        uint64
		minimum, preferred, maximum uint32
		want                        storage.Limits
		wantSize                    int64
		err                         error
	}{
		{"nothing", 1000, 0, 0, 0, storage.Limits{Minimum: 1, Preferred: 4096, MaxData: 32 * mib}, 1000, nil},
		{"usual", 1000, 1, 4096, 32 * mib, storage.Limits{Minimum: 1, Preferred: 4096, MaxData: 32 * mib}, 1000, nil},
		{"no bound", 1000, 1, 4096, math.MaxUint32, storage.Limits{Minimum: 1, Preferred: 4096, MaxData: 64 * mib}, 1000, nil},
		{"blocks", 10000, 4096, 65536, mib + 5000, storage.Limits{Minimum: 4096, Preferred: 65536, MaxData: mib + 4096}, 8192, nil},
		{"largest", 1 << 20, 65536, 32 * mib, 32 * mib, storage.Limits{Minimum: 65536, Preferred: 2 * mib, MaxData: 32 * mib}, 1 << 20, nil},
		{"preferred is odd", 1000, 1, 5000, mib, storage.Limits{Minimum: 1, Preferred: 4096, MaxData: mib}, 1000, nil},
		{"preferred is too small", 1024, 512, 1, mib, storage.Limits{Minimum: 512, Preferred: 512, MaxData: mib}, 1024, nil},
		{"maximum below preferred", 1024, 512, 65536, 10000, storage.Limits{Minimum: 512, Preferred: 8192, MaxData: 9728}, 1024, nil},
		{"the largest size", 1 << 61, 0, 0, 0, storage.Limits{Minimum: 1, Preferred: 4096, MaxData: 32 * mib}, 1 << 61, nil},
		{"minimum is odd", 1000, 3, 4096, mib, storage.Limits{}, 0, wire.ErrProtocol},
		{"no minimum", 1000, 0, 4096, mib, storage.Limits{}, 0, wire.ErrProtocol},
		{"minimum is too large", 1000, 1 << 17, 1 << 17, mib, storage.Limits{}, 0, wire.ErrProtocol},
		{"maximum below minimum", 1000, 4096, 4096, 512, storage.Limits{}, 0, storage.ErrUnsupported},
		{"too large", 1<<61 + 1, 0, 0, 0, storage.Limits{}, 0, storage.ErrUnsupported},
		{"far too large", math.MaxUint64, 0, 0, 0, storage.Limits{}, 0, storage.ErrUnsupported},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newFake(t, nil, func(s *fake) {
				s.info = wire.ExportInfo{Size: c.size, Flags: usual, Minimum: c.minimum, Preferred: c.preferred, Maximum: c.maximum}
			})
			if c.err != nil {
				_, err := nbd.Open(t.Context(), options(s.uri))
				is(t, "open", err, c.err)
				return
			}
			f := openFile(t, options(s.uri))
			got, err := storage.NewNode("n", f, storage.NodeOptions{}).Limits(t.Context())
			want, bad := c.want.Complete()
			if err != nil || bad != nil || got != want {
				t.Errorf("%+v, %v, want %+v, %v", got, err, want, bad)
			}
			if size, err := f.Size(t.Context()); size != c.wantSize || err != nil {
				t.Errorf("%d bytes, %v, want %d", size, err, c.wantSize)
			}
		})
	}
}

func TestReadOnly(t *testing.T) {
	s := newFake(t, make([]byte, 8192), func(s *fake) { s.info.Flags |= wire.ReadOnly })
	f := openFile(t, options(s.uri))
	is(t, "start writing", f.StartWriting(t.Context()), storage.ErrReadOnly)
	for c, do := range commands(f) {
		want := storage.ErrReadOnly
		if c == wire.CmdRead || c == wire.CmdBlockStatus {
			want = nil
		}
		is(t, c.String(), do(t.Context()), want)
	}
	is(t, "truncate", f.Truncate(t.Context(), 8192), storage.ErrReadOnly)
}

// What a server does not say that it can, it is not asked for.
func TestAbilities(t *testing.T) {
	for name, set := range map[string]func(s *fake){
		"none": func(s *fake) { s.info.Flags = wire.HasFlags },
		"old":  func(s *fake) { s.info.Flags, s.old = wire.HasFlags, true },
		"old, with padding": func(s *fake) {
			s.info.Flags, s.old, s.greetFlags = wire.HasFlags, true, wire.FlagFixedNewstyle
		},
		"without flags": func(s *fake) { s.info.Flags = usual &^ wire.HasFlags },
		"unmapped":      func(s *fake) { s.info.Flags, s.unmapped = wire.HasFlags, true },
	} {
		t.Run(name, func(t *testing.T) {
			s := newFake(t, random(t, 3<<20), set, func(s *fake) { s.info.Size = uint64(len(s.content)) })
			f := openFile(t, options(s.uri))
			if err := f.StartWriting(t.Context()); err != nil {
				t.Error(err)
			}
			for c, do := range commands(f) {
				is(t, c.String(), do(t.Context()), nil)
			}
			if err := f.Zero(t.Context(), 5, 3<<20-10, false); err != nil {
				t.Error(err)
			}
			p := make([]byte, 3<<20)
			if n, err := f.ReadAt(t.Context(), p, 0); n != len(p) || err != nil {
				t.Error(n, err)
			}
			if strings.Trim(string(p[:3<<20-5]), "\x00") != "" || p[3<<20-1] == 0 {
				t.Error("not zeroed, or too much")
			}
			var l storage.ExtentList
			if err := f.Extents(t.Context(), 100, 1, &l); err != nil || l.Start() != 100 || l.At(0).Status != storage.Alloc|storage.OffsetValid {
				t.Errorf("%v, %v", l.At(0), err)
			}
			for _, c := range []wire.Command{wire.CmdFlush, wire.CmdTrim, wire.CmdWriteZeroes} {
				if s.count(c) != 0 {
					t.Errorf("it was asked for %v", c)
				}
			}
			if n := s.connections(); n != 1 {
				t.Errorf("%d connections", n)
			}
		})
	}
}

// Several connections are made where the server allows it, and no more than are
// wanted.
func TestConnections(t *testing.T) {
	for flag, want := range map[wire.Transmission]int{0: 1, wire.CanMultiConn: 3} {
		s := newFake(t, make([]byte, 1<<20), func(s *fake) { s.info.Flags = wire.HasFlags | flag })
		opt := options(s.uri)
		opt.Connections = 3
		f := openFile(t, opt)
		s.on(func(p *peer, r wire.Request, payload []byte) bool {
			s.wg.Go(func() {
				time.Sleep(time.Millisecond)
				p.answer(r, payload)
			})
			return true
		})
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() {
				for round := 0; round < 20 || s.connections() < want; round++ {
					is(t, "read", commands(f)[wire.CmdRead](t.Context()), nil)
				}
			})
		}
		wg.Wait()
		if n := s.connections(); n != want {
			t.Errorf("%d connections, want %d", n, want)
		}
	}
}

func TestNoExport(t *testing.T) {
	for _, old := range []bool{false, true} {
		s := newFake(t, nil, func(s *fake) { s.old = old })
		_, err := nbd.Open(t.Context(), options(unixURI(s.path, "another")))
		want := storage.ErrNotFound
		if old {
			want = io.ErrUnexpectedEOF
		}
		if is(t, "open", err, want); err != nil && (strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), s.path)) {
			t.Error(err)
		}
	}
	_, err := nbd.Open(t.Context(), options(unixURI(filepath.Join(directory(t), "none"), "x")))
	if is(t, "open", err, syscall.ENOENT); err != nil && strings.Contains(err.Error(), "none") {
		t.Error(err)
	}
	_, err = nbd.Open(t.Context(), options("nbd://127.0.0.1:1/x"))
	is(t, "open", err, syscall.ECONNREFUSED)
}

// Servers that are none, or are silent, are given up.
func TestNoHandshake(t *testing.T) {
	greeting := wire.AppendGreeting(nil, wire.FlagFixedNewstyle)
	reply := func(o wire.Option, r wire.OptionReply, b []byte) []byte { return wire.AppendOptionReply(nil, o, r, b) }
	info := wire.AppendInfoExport(nil, 100, wire.HasFlags)
	head := append(append(greeting, reply(wire.OptExtendedHeaders, wire.RepErrUnsup, nil)...), reply(wire.OptStructuredReply, wire.RepErrUnsup, nil)...)
	for _, c := range []struct {
		name string
		sent []byte
		want error
	}{
		{"another protocol", []byte("SSH-2.0-OpenSSH_9.2p1 Debian-2"), wire.ErrProtocol},
		{"the old style", append([]byte("NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53"), make([]byte, 136)...), wire.ErrProtocol},
		{"newstyle that is not fixed", wire.AppendGreeting(nil, 0), storage.ErrUnsupported},
		{"nothing", nil, os.ErrDeadlineExceeded},
		{"only a greeting", greeting, os.ErrDeadlineExceeded},
		{"a reply to another option", append(greeting, reply(wire.OptList, wire.RepAck, nil)...), wire.ErrProtocol},
		{"a reply that is no reply", append(greeting, make([]byte, 20)...), wire.ErrProtocol},
		{"a context that nobody wants", append(append(greeting, reply(wire.OptExtendedHeaders, wire.RepAck, nil)...),
			reply(wire.OptSetMetaContext, wire.RepMetaContext, wire.AppendMetaContext(nil, 1, "x-a:b"))...), wire.ErrProtocol},
		{"no information", append(head, reply(wire.OptGo, wire.RepAck, nil)...), wire.ErrProtocol},
		{"short information", append(head, reply(wire.OptGo, wire.RepInfo, info[:11])...), wire.ErrProtocol},
		{"a reply without end", append(head, strings.Repeat(string(reply(wire.OptGo, wire.RepInfo, info)), 1000)...), wire.ErrProtocol},
		{"policy", append(head, reply(wire.OptGo, wire.RepErrPolicy, nil)...), storage.ErrRefused},
		{"TLS is wanted", append(head, reply(wire.OptGo, wire.RepErrTLSReqd, nil)...), storage.ErrRefused},
		{"shutting down", append(head, reply(wire.OptGo, wire.RepErrShutdown, nil)...), syscall.ESHUTDOWN},
	} {
		t.Run(c.name, func(t *testing.T) {
			uri, stop := raw(t, c.sent)
			defer stop()
			opt := options(uri)
			opt.DialTimeout = 100 * time.Millisecond
			_, err := nbd.Open(t.Context(), opt)
			if is(t, "open", err, c.want); errors.Is(err, context.DeadlineExceeded) {
				t.Error("the deadline was not the caller's")
			}
		})
	}
	uri, stop := raw(t, nil)
	defer stop()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	_, err := nbd.Open(ctx, options(uri))
	is(t, "open", err, context.DeadlineExceeded)
}

// raw is a server that says always the same, and listens to nothing.
func raw(t testing.TB, sent []byte) (uri string, stop func()) {
	t.Helper()
	path := filepath.Join(directory(t), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				wg.Go(func() { _, _ = c.Write(sent) })
				_, _ = io.Copy(io.Discard, c)
			})
		}
	})
	return unixURI(path, "disk"), func() { _ = l.Close(); wg.Wait() }
}
