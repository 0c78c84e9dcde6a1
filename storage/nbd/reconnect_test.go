package nbd_test

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/nbd"
	"github.com/extentd/extentd/storage/nbd/wire"
)

// commands are all that a file asks of a server.
func commands(f *nbd.File) map[wire.Command]func(ctx context.Context) error {
	return map[wire.Command]func(ctx context.Context) error{
		wire.CmdRead: func(ctx context.Context) error {
			_, err := f.ReadAt(ctx, make([]byte, 4096), 0)
			return err
		},
		wire.CmdWrite: func(ctx context.Context) error {
			_, err := f.WriteAt(ctx, make([]byte, 4096), 0)
			return err
		},
		wire.CmdWriteZeroes: func(ctx context.Context) error { return f.Zero(ctx, 0, 4096, true) },
		wire.CmdTrim:        func(ctx context.Context) error { return f.Trim(ctx, 0, 4096) },
		wire.CmdFlush:       func(ctx context.Context) error { return f.Flush(ctx) },
		wire.CmdBlockStatus: func(ctx context.Context) error {
			var l storage.ExtentList
			return f.Extents(ctx, 0, 4096, &l)
		},
	}
}

// A connection that dies between a request and its reply: reads and questions for
// extents are done again, changes are not.
func TestLostReply(t *testing.T) {
	forms(t, func(t *testing.T, s *fake, _ []byte) {
		f := openFile(t, options(s.uri))
		for c, do := range commands(f) {
			var dead atomic.Bool
			s.on(func(p *peer, r wire.Request, _ []byte) bool {
				if r.Command == c && !dead.Swap(true) {
					_ = p.c.Close()
					return true
				}
				return false
			})
			before := s.count(c)
			err := do(t.Context())
			again, want := c == wire.CmdRead || c == wire.CmdBlockStatus, 2
			if s.simple && c == wire.CmdBlockStatus {
				want = 0
			}
			if asked := s.count(c) - before; again && (err != nil || asked != want) {
				t.Errorf("%v: %v, asked %d times", c, err, asked)
			} else if !again && (!errors.Is(err, nbd.ErrLost) || !errors.Is(err, syscall.EIO) || asked != 1) {
				t.Errorf("%v: %v, asked %d times", c, err, asked)
			}
			s.on(nil)
			if c == wire.CmdFlush {
				_ = f.Flush(t.Context())
				continue
			}
			if again {
				is(t, "flush where nothing was changed", f.Flush(t.Context()), nil)
			} else {
				is(t, "first flush", f.Flush(t.Context()), nbd.ErrLost)
				is(t, "second flush", f.Flush(t.Context()), nil)
			}
		}
	})
}

// What was answered before a connection was lost is not durable, unless it was
// flushed.
func TestUnflushed(t *testing.T) {
	s := newFake(t, make([]byte, 64<<10))
	f := openFile(t, options(s.uri))
	write, flush := commands(f)[wire.CmdWrite], commands(f)[wire.CmdFlush]
	read := commands(f)[wire.CmdRead]
	lose := func() {
		before := s.connections()
		s.drop()
		for s.connections() == before { // it is made again for who needs it
			is(t, "read", read(t.Context()), nil)
		}
	}
	is(t, "write", write(t.Context()), nil)
	is(t, "flush", flush(t.Context()), nil)
	lose()
	is(t, "flush of what was flushed", flush(t.Context()), nil)
	is(t, "write", write(t.Context()), nil)
	lose()
	is(t, "write on the new connection", write(t.Context()), nil)
	is(t, "flush after a loss", flush(t.Context()), nbd.ErrLost)
	is(t, "flush after that", flush(t.Context()), nil)
	lose()
	is(t, "flush of what was flushed", flush(t.Context()), nil)
}

// What no connection was there for is done once there is one: it was never sent.
func TestRestart(t *testing.T) {
	s := newFake(t, make([]byte, 64<<10))
	f := openFile(t, options(s.uri))
	for c, do := range commands(f) {
		s.stop()
		for gone := false; !gone; { // until it has noticed
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
			gone = errors.Is(commands(f)[wire.CmdRead](ctx), context.DeadlineExceeded)
			cancel()
		}
		done := make(chan error, 1)
		go func() { done <- do(t.Context()) }()
		time.Sleep(30 * time.Millisecond)
		before := s.count(c)
		s.set(func() { s.refuse = true }) // at first
		s.listen()
		time.Sleep(30 * time.Millisecond)
		s.set(func() { s.refuse = false })
		if err := <-done; err != nil && (c != wire.CmdFlush || !errors.Is(err, nbd.ErrLost)) { // it may have been told of a loss
			t.Errorf("%v: %v", c, err)
		} else if s.count(c) == before {
			t.Errorf("%v was never asked for", c)
		}
	}
}

func TestNoServer(t *testing.T) {
	s := newFake(t, make([]byte, 64<<10))
	opt := options(s.uri)
	opt.Reconnect = 100 * time.Millisecond
	f := openFile(t, opt)
	s.stop()
	for c, do := range commands(f) {
		err := do(t.Context())
		if !errors.Is(err, syscall.ENOENT) && !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, nbd.ErrLost) {
			t.Errorf("%v: %v", c, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	is(t, "read", commands(f)[wire.CmdRead](ctx), context.DeadlineExceeded)
}

// Another export under the same name is not taken for the one that was opened.
func TestChanged(t *testing.T) {
	for name, change := range map[string]func(s *fake){
		"size":    func(s *fake) { s.info.Size /= 2 },
		"flags":   func(s *fake) { s.info.Flags |= wire.ReadOnly },
		"minimum": func(s *fake) { s.info.Minimum, s.info.Preferred, s.info.Maximum = 512, 4096, 1<<20 },
	} {
		t.Run(name, func(t *testing.T) {
			s := newFake(t, make([]byte, 64<<10))
			f := openFile(t, options(s.uri))
			s.set(func() { change(s) })
			s.drop()
			for range 2 {
				is(t, "read", commands(f)[wire.CmdRead](t.Context()), storage.ErrChanged)
			}
			is(t, "write", commands(f)[wire.CmdWrite](t.Context()), storage.ErrChanged)
			if n := s.count(wire.CmdRead); n != 0 {
				t.Errorf("%d reads reached it", n)
			}
		})
	}
}

// A server that is shutting down does nothing more: everything is done on another
// connection, and this one is left politely.
func TestShutdown(t *testing.T) {
	forms(t, func(t *testing.T, s *fake, _ []byte) {
		f := openFile(t, options(s.uri))
		for c, do := range commands(f) {
			if c == wire.CmdBlockStatus && s.simple {
				continue
			}
			down := s.connections()
			s.on(func(p *peer, r wire.Request, _ []byte) bool {
				if p.number <= down {
					p.fail(r, wire.ESHUTDOWN)
				}
				return p.number <= down
			})
			before := s.count(c)
			if err := do(t.Context()); err != nil || s.count(c) != before+2 {
				if c == wire.CmdFlush && errors.Is(err, nbd.ErrLost) {
					continue // something had been changed before
				}
				t.Errorf("%v: %v, asked %d times", c, err, s.count(c)-before)
			}
		}
		for s.count(wire.CmdDisc) < s.connections()-1 {
			time.Sleep(time.Millisecond)
		}
	})
}

// A server that says nothing is given up. While it owes nothing it may be silent.
func TestSilence(t *testing.T) {
	s := newFake(t, make([]byte, 64<<10))
	opt := options(s.uri)
	opt.Timeout = 50 * time.Millisecond
	f := openFile(t, opt)
	time.Sleep(150 * time.Millisecond)
	is(t, "read", commands(f)[wire.CmdRead](t.Context()), nil)
	if s.connections() != 1 {
		t.Errorf("%d connections", s.connections())
	}
	s.on(func(p *peer, _ wire.Request, _ []byte) bool { return p.number == 1 })
	is(t, "read", commands(f)[wire.CmdRead](t.Context()), nil)
	if s.connections() != 2 {
		t.Errorf("%d connections", s.connections())
	}
	s.on(func(*peer, wire.Request, []byte) bool { return true })
	is(t, "write", commands(f)[wire.CmdWrite](t.Context()), nbd.ErrLost)
}

// Whose context ends returns at once, has his buffer back, and harms nobody else.
func TestCancel(t *testing.T) {
	forms(t, func(t *testing.T, s *fake, content []byte) {
		f := openFile(t, options(s.uri))
		release := make(chan struct{})
		arrived := make(chan struct{}, 100)
		s.on(func(p *peer, r wire.Request, payload []byte) bool {
			s.wg.Go(func() {
				arrived <- struct{}{}
				<-release
				p.answer(r, payload)
			})
			return true
		})
		for c, do := range commands(f) {
			if c == wire.CmdBlockStatus && s.simple {
				continue
			}
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(20*time.Millisecond, cancel) // some wait for those before them
			is(t, c.String(), do(ctx), context.Canceled)
		}
		for len(arrived) > 0 {
			<-arrived
		}
		ctx, cancel := context.WithCancel(t.Context())
		go func() { <-arrived; cancel() }()
		p := bytes.Repeat([]byte{0xee}, 4096)
		_, err := f.ReadAt(ctx, p, 8192)
		is(t, "read", err, context.Canceled)
		close(release)
		got := make([]byte, 4096)
		if _, err := f.ReadAt(t.Context(), got, 16384); err != nil || !bytes.Equal(got, content[16384:20480]) {
			t.Error("another read", err)
		}
		if !bytes.Equal(p, bytes.Repeat([]byte{0xee}, 4096)) {
			t.Error("the reply came into a buffer that had been given back")
		}
	})
}

// A write that is cancelled while it is sent is sent to its end: with what the caller
// had in his buffer, though he uses it for something else already.
func TestCancelWrite(t *testing.T) {
	const n = 2 << 20
	began, on, got := make(chan struct{}), make(chan struct{}), make(chan []byte, 1)
	s := newFake(t, make([]byte, 100), func(s *fake) {
		s.info.Size = n
		s.early = func(_ *peer, r wire.Request) {
			if r.Command == wire.CmdWrite {
				close(began)
				<-on
			}
		}
	})
	s.on(func(_ *peer, r wire.Request, payload []byte) bool {
		if r.Command == wire.CmdWrite {
			got <- payload
		}
		return false
	})
	f := openFile(t, options(s.uri))
	p := random(t, n)
	want := bytes.Clone(p)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-began; cancel() }()
	_, err := f.WriteAt(ctx, p, 0)
	is(t, "write", err, context.Canceled)
	clear(p)
	close(on)
	if !bytes.Equal(<-got, want) {
		t.Error("the server gets other bytes than were written")
	}
	if _, err := f.ReadAt(t.Context(), make([]byte, 10), 0); err != nil || s.connections() != 1 {
		t.Errorf("%v, %d connections", err, s.connections())
	}
}

// What is queued and was not sent yet is never sent after the context has ended.
func TestCancelQueued(t *testing.T) {
	const n = 2 << 20
	began, on := make(chan struct{}), make(chan struct{})
	var once sync.Once
	s := newFake(t, make([]byte, 100), func(s *fake) {
		s.info.Size, s.info.Flags = n, s.info.Flags&^wire.CanMultiConn
		s.early = func(*peer, wire.Request) { once.Do(func() { close(began); <-on }) }
	})
	f := openFile(t, options(s.uri))
	done := make(chan error, 1)
	go func() {
		_, err := f.WriteAt(t.Context(), make([]byte, n), 0)
		done <- err
	}()
	<-began
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	is(t, "zero", f.Zero(ctx, 0, 4096, false), context.DeadlineExceeded)
	close(on)
	is(t, "write", <-done, nil)
	is(t, "flush", f.Flush(t.Context()), nil)
	if s.count(wire.CmdWriteZeroes) != 0 || s.connections() != 1 {
		t.Error("it was sent")
	}
}

func TestClose(t *testing.T) {
	s := newFake(t, make([]byte, 64<<10))
	s.on(func(*peer, wire.Request, []byte) bool {
		time.Sleep(50 * time.Millisecond)
		return false
	})
	f := openFile(t, options(s.uri))
	done := make(chan error, 1)
	go func() { done <- commands(f)[wire.CmdWrite](t.Context()) }()
	for s.count(wire.CmdWrite) == 0 {
		time.Sleep(time.Millisecond)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	is(t, "write under way", <-done, nil)
	for c, do := range commands(f) {
		is(t, c.String(), do(t.Context()), storage.ErrClosed)
	}
	for s.count(wire.CmdDisc) == 0 {
		time.Sleep(time.Millisecond)
	}
}

// A connection that a server is leaving counts as lost for the next flush, which goes
// to another one, though it still answers what it has.
func TestFlushWhileLeaving(t *testing.T) {
	s := newFake(t, make([]byte, 64<<10))
	release := make(chan struct{})
	f := openFile(t, options(s.uri))
	is(t, "write", commands(f)[wire.CmdWrite](t.Context()), nil)
	s.on(func(p *peer, r wire.Request, payload []byte) bool {
		switch {
		case p.number > 1:
			return false
		case r.Command == wire.CmdTrim: // it takes its time
			s.wg.Go(func() {
				<-release
				p.answer(r, payload)
			})
		default:
			p.fail(r, wire.ESHUTDOWN)
		}
		return true
	})
	done := make(chan error, 1)
	go func() { done <- commands(f)[wire.CmdTrim](t.Context()) }()
	for s.count(wire.CmdTrim) == 0 {
		time.Sleep(time.Millisecond)
	}
	is(t, "read", commands(f)[wire.CmdRead](t.Context()), nil)
	is(t, "flush", f.Flush(t.Context()), nbd.ErrLost)
	is(t, "flush", f.Flush(t.Context()), nil)
	close(release)
	is(t, "trim", <-done, nil)
	for s.count(wire.CmdDisc) == 0 {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(10 * time.Millisecond)
	is(t, "flush after a change", f.Flush(t.Context()), nbd.ErrLost) // the trim
	is(t, "flush", f.Flush(t.Context()), nil)
}

// A change that was given up while the server had it is not done after a later one
// to the same bytes: that waits. Others do not.
func TestOrphans(t *testing.T) {
	s := newFake(t, make([]byte, 64<<10))
	f := openFile(t, options(s.uri))
	release, held := make(chan struct{}), make(chan struct{})
	var once sync.Once
	s.on(func(p *peer, r wire.Request, payload []byte) (mine bool) {
		if r.Command == wire.CmdWrite && r.Offset == 4096 {
			once.Do(func() {
				mine = true
				s.wg.Go(func() {
					close(held)
					<-release
					p.answer(r, payload)
				})
			})
		}
		return mine
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-held; cancel() }()
	_, err := f.WriteAt(ctx, bytes.Repeat([]byte{1}, 4096), 4096)
	is(t, "first write", err, context.Canceled)
	_, err = f.WriteAt(t.Context(), bytes.Repeat([]byte{2}, 4096), 0)
	is(t, "write beside it", err, nil)
	_, err = f.ReadAt(t.Context(), make([]byte, 4096), 4096)
	is(t, "read", err, nil)
	late, stop := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer stop()
	is(t, "zero", f.Zero(late, 8191, 1, false), context.DeadlineExceeded)
	is(t, "trim", f.Trim(late, 0, 4097), context.DeadlineExceeded)
	done := make(chan error, 2)
	for range 2 {
		go func() {
			_, err := f.WriteAt(t.Context(), bytes.Repeat([]byte{3}, 4096), 4096)
			done <- err
		}()
	}
	time.Sleep(20 * time.Millisecond)
	close(release)
	is(t, "second write", <-done, nil)
	is(t, "third write", <-done, nil)
	p := make([]byte, 4096)
	if _, err := f.ReadAt(t.Context(), p, 4096); err != nil || !bytes.Equal(p, bytes.Repeat([]byte{3}, 4096)) {
		t.Errorf("%d, %v", p[0], err)
	}
}
