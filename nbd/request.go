package nbd

import (
	"context"
	"time"

	"github.com/extentd/extentd/storage/nbd/wire"
)

// maxQuery is the longest payload of a block status, bytes.
const maxQuery = 8 + 4*contextCount

var (
	errStopping = refuse(wire.ESHUTDOWN, "the server is stopping")
	errQuery    = refuse(wire.EINVAL, "malformed, or a context that was not agreed on")
)

// A request is on its way from the reader to who sends its reply. It is used
// again, with the memory of its slices.
type request struct {
	wire.Request
	err      error                 // why it is not served
	contexts contextSet            // of a block status
	query    [maxQuery]byte        // likewise
	cost     int64                 // memory that was taken for it, bytes
	buf      *buffer               // the payload, or the data of the reply; nil: none
	lists    [contextCount]*buffer // descriptors of the reply
	ctx      context.Context       // that it is served in
	waiting  time.Duration         // since when, if others waited before it; else 0

	heads []byte   // headers of the reply
	parts [][]byte // the reply: of heads, and data
	final int      // the part that begins the last chunk
}

// request returns an empty request once there may be another one.
func (s *session) request() *request {
	s.mu.Lock()
	for s.flying >= s.c.s.opt.MaxInFlight {
		s.await()
	}
	s.flying++
	var r *request
	if last := len(s.free) - 1; last >= 0 {
		r, s.free = s.free[last], s.free[:last]
	}
	s.mu.Unlock()
	if r == nil {
		r = new(request)
	}
	r.err, r.contexts, r.waiting = nil, s.contexts.set, 0
	r.heads, r.parts = r.heads[:0], r.parts[:0]
	return r
}

// clear gives back the memory of a request, and returns how much it was.
func (s *session) clear(r *request) int64 {
	if r.buf != nil {
		s.c.s.pool.put(r.buf)
		r.buf = nil
	}
	if r.Command == wire.CmdBlockStatus {
		for i, list := range r.lists {
			if list != nil {
				s.c.s.pool.put(list)
				r.lists[i] = nil
			}
		}
	}
	cost := r.cost
	r.cost = 0
	return cost
}

// drop forgets a request that is not replied to.
func (s *session) drop(r *request) {
	cost := s.clear(r)
	s.c.s.memory.put(cost)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used -= cost
	s.flying--
}

// narrow reads the payload of a block status: which contexts are of interest, of
// how much.
func (r *request) narrow(p []byte, s *session) {
	length, ids, ok := wire.ParseStatusQuery(p, contextCount)
	r.Length, r.contexts = length, 0
	for _, id := range ids {
		ok = ok && id < contextCount && s.contexts.set.has(int(id))
		if ok {
			r.contexts |= 1 << id
		}
	}
	if !ok {
		r.err = errQuery
	}
}

// cost is how much memory a request takes, bytes.
func (s *session) cost(r *request) int64 {
	switch r.Command {
	case wire.CmdRead, wire.CmdWrite:
		if r.Length > 0 {
			return sizeOf(classOf(int64(r.Length)))
		}
	case wire.CmdBlockStatus:
		return r.contexts.count() * sizeOf(classOf(s.listSize(r)))
	}
	return 0
}

// allowed are the flags that a command may have.
func (s *session) allowed(c wire.Command) (flags wire.Flags, known bool) {
	flags = wire.FlagFUA // on whatever command, the protocol says
	switch c {
	case wire.CmdRead:
		if s.structured {
			flags |= wire.FlagDF
		}
	case wire.CmdWrite:
		if s.extended {
			flags |= wire.FlagPayloadLen
		}
	case wire.CmdWriteZeroes:
		flags |= wire.FlagNoHole | wire.FlagFastZero
	case wire.CmdBlockStatus:
		flags |= wire.FlagReqOne
		if s.extended && s.contexts.set != 0 {
			flags |= wire.FlagPayloadLen
		}
	case wire.CmdFlush, wire.CmdTrim, wire.CmdCache:
	default:
		return 0, false
	}
	return flags, true
}

// changes reports whether a command changes the image.
func changes(c wire.Command) bool {
	return c == wire.CmdWrite || c == wire.CmdTrim || c == wire.CmdWriteZeroes
}

// check refuses what breaks the rules, before anything below is asked.
func (s *session) check(r *request) error {
	flags, known := s.allowed(r.Command)
	switch {
	case !known:
		return refuse(wire.EINVAL, "unknown %v", r.Command)
	case r.Flags&^flags != 0:
		return refuse(wire.EINVAL, "flags %#x are not for %v", uint16(r.Flags&^flags), r.Command)
	case s.extended && r.Command == wire.CmdWrite && r.Flags&wire.FlagPayloadLen == 0:
		return refuse(wire.EINVAL, "a write without the flag that says so")
	case r.Command == wire.CmdBlockStatus && r.contexts == 0:
		return refuse(wire.EINVAL, "no metadata context was agreed on")
	case changes(r.Command) && s.export.readOnly:
		return refuse(wire.EPERM, "the export is read-only")
	}
	return s.checkRange(r)
}

func (s *session) checkRange(r *request) error {
	e := s.export
	if r.Command == wire.CmdFlush {
		if r.Offset|r.Length != 0 {
			return refuse(wire.EINVAL, "a flush of a range")
		}
		return nil
	}
	if r.Offset > e.size || r.Length > e.size-r.Offset {
		errno := wire.EINVAL
		if grows(r.Command) {
			errno = wire.ENOSPC
		}
		return refuse(errno, "offset %d and length %d exceed the size %d", r.Offset, r.Length, e.size)
	}
	if (r.Offset|r.Length)&(e.minimum-1) != 0 {
		return refuse(wire.EINVAL, "offset %d and length %d must be multiples of %d", r.Offset, r.Length, e.minimum)
	}
	most := e.size
	switch r.Command {
	case wire.CmdRead, wire.CmdWrite:
		most = e.maxData
	case wire.CmdCache:
		most = e.maxCache
	case wire.CmdBlockStatus:
		if r.Length == 0 {
			return refuse(wire.EINVAL, "a block status of nothing")
		}
	}
	if r.Length > most {
		return refuse(wire.EINVAL, "length %d is more than %d", r.Length, most)
	}
	return nil
}
