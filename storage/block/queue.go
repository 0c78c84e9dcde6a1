package block

import (
	"context"

	"github.com/extentd/extentd/storage"
)

// maxSegments bounds how far a queue looks ahead over extents that need no
// unpacking.
const maxSegments = 256

// A segment is what a stream hands out next: a plain mapping, or a run of
// compressed units that a worker unpacks.
type segment struct {
	m   storage.Mapping // without job
	job *job            // nil for a plain mapping
}

// A queue holds the segments that lie before a stream, in order. It looks one
// mapping ahead, until it meets compressed data: from there on it keeps the
// workers busy with what comes after.
type queue struct {
	s     *Stream
	scan  int64     // the first offset that is in no segment
	ring  []segment // from head on
	head  int
	err   error // what ended the scan, due when the ring is empty
	ahead *ahead
	open  *job // the ring's last, not yet given to a worker
	given *job // handed out; its buffer is the receiver's until the next call
}

func newQueue(s *Stream) *queue { return &queue{s: s, scan: s.off} }

// front returns the next segment, with at least one byte.
func (q *queue) front() (*segment, error) {
	if q.given != nil {
		q.ahead.recycle(q.given)
		q.given = nil
	}
	if q.head == len(q.ring) {
		q.ring, q.head = q.ring[:0], 0
		q.scanOne()
		if len(q.ring) == 0 {
			return nil, q.err
		}
	}
	if q.ahead != nil {
		q.scanAhead()
	}
	return &q.ring[q.head], nil
}

func (q *queue) pop() { q.head++ }

// scanAhead fills the queue as far as there are jobs to give.
func (q *queue) scanAhead() {
	if q.head > maxSegments {
		n := copy(q.ring, q.ring[q.head:])
		q.ring, q.head = q.ring[:n], 0
	}
	for q.err == nil && q.scan < q.s.end && len(q.ring)-q.head < maxSegments &&
		(q.open != nil || q.ahead.free()) {
		q.scanOne()
	}
	q.dispatch()
}

// scanOne resolves one more mapping and queues it.
func (q *queue) scanOne() {
	m, err := q.s.cursor.resolve(q.s.ctx, q.scan, q.s.end)
	if err != nil {
		q.err = err
		return
	}
	q.scan = m.End()
	unpacker := q.s.d.layers[m.Depth].unpacker
	if m.Flags&storage.Compressed == 0 || unpacker == nil {
		q.dispatch()
		q.ring = append(q.ring, segment{m: m})
		return
	}
	if q.ahead == nil {
		q.ahead = newAhead(q.s.ctx)
	}
	if q.open == nil || !q.open.takes(&m) {
		q.dispatch()
		q.open = q.ahead.job(unpacker)
		q.ring = append(q.ring, segment{job: q.open})
	}
	q.open.add(&m)
	if q.open.full() {
		q.dispatch()
	}
}

// dispatch gives the open job to the workers.
func (q *queue) dispatch() {
	if q.open != nil {
		q.ahead.give(q.open)
		q.open = nil
	}
}

// finish waits for the job at the front and returns what it unpacked, valid
// until the next call of front.
func (q *queue) finish(front *segment) ([]byte, error) {
	j := front.job
	q.pop()
	if err := j.wait(q.s.ctx); err != nil {
		return nil, err
	}
	q.given = j
	return j.data(), j.err
}

// stop ends the workers and waits for them.
func (q *queue) stop() {
	if q.ahead != nil {
		q.ahead.stop()
	}
}

// wait blocks until a worker is done with the job.
func (j *job) wait(ctx context.Context) error {
	select {
	case <-j.ready:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
