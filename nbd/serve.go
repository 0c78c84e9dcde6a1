package nbd

import (
	"fmt"
	"runtime/debug"
	"time"

	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage/nbd/wire"
)

const (
	// baseWorkers serve small requests where storage is fast. More make it
	// slower there.
	baseWorkers = 4
	// crowded is how long a request waits for a worker before there is another
	// one.
	crowded = 500 * time.Microsecond
	// quick is how fast a request is served where no further workers are
	// needed.
	quick = 100 * time.Microsecond
	// inlineTime is how long a read or write that the reader serves itself may
	// take, beside a microsecond a KiB: handing it over would cost more. Beyond
	// it the storage is slow, and the next are for workers: slowFor, and twice as
	// many each time, up to slowMost.
	inlineTime = 200 * time.Microsecond
	slowFor    = 64
	slowMost   = 4096
	// heldMost is how many short replies of the reader's wait for one that is
	// sent at once.
	heldMost = 8
	// longReply is not held, bytes.
	longReply = 64 << 10
)

func (s *session) startWorkers() {
	n := min(baseWorkers, s.c.s.opt.MaxInFlight)
	s.count.Store(int32(n))
	for range n {
		s.workers.Go(func() { s.worker(false) })
	}
}

// worker serves requests until there are no more. One beyond the base goes once
// they are served quickly.
func (s *session) worker(extra bool) {
	for r := range s.queue {
		if r.waiting != 0 && s.clock()-r.waiting > crowded {
			s.hire()
		}
		if !extra {
			s.serve(r)
			continue
		}
		began := s.clock()
		s.serve(r)
		if s.clock()-began < quick {
			s.count.Add(-1)
			return
		}
	}
}

// hire adds a worker, which the one that calls it answers for.
func (s *session) hire() {
	if s.count.Add(1) > int32(s.c.s.opt.MaxInFlight) {
		s.count.Add(-1)
		return
	}
	s.workers.Go(func() { s.worker(true) })
}

// dispatch serves a request, or has it served.
func (s *session) dispatch(r *request) {
	switch {
	case r.err != nil:
		s.reply(r, r.err)
		s.hold(r)
	case s.inline(r):
		began := s.clock()
		err := s.do(r)
		if s.clock()-began < inlineTime+time.Duration(r.Length>>10)*time.Microsecond {
			s.penalty = slowFor
		} else {
			s.slow, s.penalty = s.penalty, min(2*s.penalty, slowMost)
		}
		s.reply(r, err)
		s.hold(r)
	default:
		s.unhold()
		if len(s.queue) > 0 {
			r.waiting = s.clock()
		}
		s.queue <- r
	}
}

// inline reports whether the reader serves the request.
func (s *session) inline(r *request) bool {
	if r.Flags&wire.FlagFUA != 0 || r.Command != wire.CmdRead && r.Command != wire.CmdWrite {
		return false
	}
	if s.slow > 0 {
		s.slow--
		return false
	}
	return true
}

// hold sends the reader's reply, or lets it wait if there is another request at
// hand. Whatever the reader may wait for, it sends first what it holds.
func (s *session) hold(r *request) {
	if s.held < heldMost && r.Length < longReply && s.in.Buffered() >= wire.ExtRequestSize {
		s.held++
		s.mu.Lock()
		s.out = append(s.out, r)
		s.mu.Unlock()
		return
	}
	s.held = 0
	s.send(r)
}

// unhold sends what the reader holds.
func (s *session) unhold() {
	if s.held > 0 {
		s.held = 0
		s.send(nil)
	}
}

func (s *session) serve(r *request) {
	s.reply(r, s.do(r))
	s.send(r)
}

// do does what the request asks for. Parts of the reply are set where it has any.
func (s *session) do(r *request) (err error) {
	defer func() {
		if p := recover(); p != nil { // as api does
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	if s.gone.Load() && !changes(r.Command) {
		return nil
	}
	r.ctx = s.c.s.ctx
	if trace := s.c.s.opt.Trace; trace != nil {
		var end func(error)
		r.ctx, end = trace(r.ctx, CommandName(kindOf(r.Command)), s.export.name, r.Offset, r.Length)
		defer func() { end(err) }()
	}
	h, err := s.export.acquire(r.ctx, changes(r.Command))
	if err != nil {
		return err
	}
	defer h.Release()
	if err = s.perform(r, h); err != nil {
		h.Report(err)
	}
	return err
}

func (s *session) perform(r *request, h *service.Handle) error {
	ctx, d := r.ctx, h.Device()
	off, n := int64(r.Offset), int64(r.Length)
	var err error
	switch r.Command {
	case wire.CmdRead:
		return s.read(r, d)
	case wire.CmdBlockStatus:
		return s.status(r, h)
	case wire.CmdFlush:
		return d.Flush(ctx)
	case wire.CmdWrite:
		if n > 0 {
			err = d.WriteAt(ctx, r.buf.data[:n], off)
		}
	case wire.CmdTrim:
		err = s.trim(r, d)
	case wire.CmdWriteZeroes:
		err = s.zero(r, d)
	}
	if err == nil && r.Flags&wire.FlagFUA != 0 && changes(r.Command) {
		err = d.Flush(ctx)
	}
	return err
}
