package nbd

import (
	"sync"

	"github.com/extentd/extentd/storage/nbd/wire"
)

// mostPieces bounds how scattered the chunks of a read may arrive: as many pieces
// that do not touch each other.
const mostPieces = 1024

// A request is a command on one connection. The caller owns it before, and after it
// was answered without an error; while it is under way, the fields above mu are the
// connection's receiver's, but for what says otherwise.
type request struct {
	wire.Request
	pieces  []piece           // of a read: what has arrived, in order, never touching
	status  []wire.Descriptor // of a block status
	err     error             // what the server answered
	errors  int               // how many times
	waiting bool              // under the connection's mutex: nothing of it has been sent
	left    bool              // the caller's: he gave it up, and the server may do it

	// mu owns the buffers of the caller. It is held while bytes are copied from
	// or to them, and never while the connection is read or written. Once both
	// are nil, the caller's memory is his own again.
	mu      sync.Mutex
	payload []byte // what is still to be sent of a write
	dst     []byte // where a read goes

	done chan error // gets one value, when the connection has no more use for it
}

// A piece is a range of a read, relative to its offset.
type piece struct{ begin, end uint64 }

// Requests that have ended in order are used again.
var requests = sync.Pool{New: func() any { return &request{done: make(chan error, 1)} }}

func newRequest(c wire.Command, flags wire.Flags, off, n int64) *request {
	r := requests.Get().(*request)
	r.Request = wire.Request{Command: c, Flags: flags, Offset: uint64(off), Length: uint64(n)}
	r.left = false
	r.pieces, r.status, r.err, r.errors = r.pieces[:0], r.status[:0], nil, 0
	return r
}

// free gives back one that was answered without an error.
func (r *request) free() {
	if cap(r.status) > 1<<12 {
		r.status = nil
	}
	if cap(r.pieces) > 1<<6 {
		r.pieces = nil
	}
	r.payload, r.dst, r.err = nil, nil, nil
	requests.Put(r)
}

// changes reports whether the request changes the export.
func (r *request) changes() bool {
	return r.Command == wire.CmdWrite || r.Command == wire.CmdWriteZeroes || r.Command == wire.CmdTrim
}

// take copies to p what is next to be sent.
func (r *request) take(p []byte) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := copy(p, r.payload)
	r.payload = r.payload[n:]
	return n
}

// put copies p to where it belongs, if the caller is still there.
func (r *request) put(p []byte, at uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.dst != nil {
		copy(r.dst[at:], p)
	}
}

// wipe is put of zeros.
func (r *request) wipe(at, n uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.dst != nil {
		clear(r.dst[at : at+n])
	}
}

// detach gives the caller his buffers back. What is still to be sent is kept as a
// copy: half a request cannot be taken back.
func (r *request) detach(send bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dst = nil
	if !send {
		r.payload = nil
	} else if len(r.payload) > 0 {
		r.payload = append([]byte(nil), r.payload...)
	}
}

// unsent reports whether a part of the payload is still to be sent.
func (r *request) unsent() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.payload) > 0
}

// cover notes that the n bytes at off of the export arrive, and returns where in the
// buffer. It fails if they were not asked for, or have arrived before.
func (r *request) cover(off, n uint64) (at uint64, err error) {
	at = off - r.Offset
	if off < r.Offset || n == 0 || at > r.Length || n > r.Length-at {
		return 0, protocolError("%d bytes at %d in answer to a read of %d at %d", n, off, r.Length, r.Offset)
	}
	i := len(r.pieces)
	for i > 0 && r.pieces[i-1].begin >= at+n {
		i--
	}
	before, after := i > 0 && r.pieces[i-1].end == at, i < len(r.pieces) && r.pieces[i].begin == at+n
	switch {
	case i > 0 && r.pieces[i-1].end > at:
		return 0, protocolError("bytes at %d twice in answer to a read of %d at %d", off, r.Length, r.Offset)
	case before && after:
		r.pieces[i-1].end = r.pieces[i].end
		r.pieces = append(r.pieces[:i], r.pieces[i+1:]...)
	case before:
		r.pieces[i-1].end = at + n
	case after:
		r.pieces[i].begin = at
	case len(r.pieces) == mostPieces:
		return 0, protocolError("a read of %d bytes in too many pieces", r.Length)
	default:
		r.pieces = append(r.pieces, piece{})
		copy(r.pieces[i+1:], r.pieces[i:])
		r.pieces[i] = piece{at, at + n}
	}
	return at, nil
}

// whole reports whether every byte of a read has arrived.
func (r *request) whole() bool {
	return len(r.pieces) == 1 && r.pieces[0] == piece{0, r.Length} || r.Length == 0
}
