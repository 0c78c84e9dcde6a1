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
	m       storage.Mapping // without job: what is there from m.Offset on
	end     int64           // without job: where the segment ends, at m's end or after it
	section uint64          // the cursor's when it found m
	job     *job            // nil for a plain mapping
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

// front returns the next segment, with at least one byte, good until the
// stream's cursor releases what it has found.
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
	front := &q.ring[q.head]
	return front, q.revive(front)
}

// revive makes a plain segment that was found earlier good again: as it stands
// if nothing can have changed, else by looking anew.
func (q *queue) revive(f *segment) error {
	c := q.s.cursor
	if f.job != nil || f.section == c.section {
		return nil
	}
	c.hold(int(f.m.Depth))
	if !q.s.d.moves() { // asked after the pin was taken
		f.section = c.section
		return nil
	}
	m, err := c.resolve(q.s.ctx, f.m.Offset, f.end)
	if err != nil {
		return err
	}
	f.m, f.section = m, c.section
	return nil
}

// advance takes n bytes off the front.
func (q *queue) advance(front *segment, n int64) {
	switch at := front.m.Offset + n; {
	case at == front.end:
		q.head++
	case at < front.m.End():
		front.m.Clip(at, front.m.End())
	default: // it was cut when it was looked at anew: so is what follows
		front.m = storage.Mapping{Offset: at, Length: front.end - at}
		front.section--
	}
}

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
	if m.Flags&storage.Compressed == 0 || unpacker == nil || !q.goAhead(unpacker.PackedUnit()) {
		q.dispatch()
		q.ring = append(q.ring, segment{m: m, end: m.End(), section: q.s.cursor.section})
		return
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

// goAhead makes sure that there are workers, unless there is no memory for them:
// then units are unpacked as they are read.
func (q *queue) goAhead(unit int64) bool {
	if q.ahead == nil {
		q.ahead = aheadOf(q.s.ctx, q.s.d, unit, &q.s.memory)
	}
	return q.ahead != nil
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
	q.head++
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
