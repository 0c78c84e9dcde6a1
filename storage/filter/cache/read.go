package cache

import (
	"context"
	"fmt"
	"io"

	"github.com/extentd/extentd/storage"
)

// bounceMost is the longest run of blocks that is fetched into memory of the
// filter's own, where it does not begin and end with the buffer of the caller.
const bounceMost = 4 << 20

// ReadAt reads len(p) bytes from off: from the cache what is there, and the rest
// in whole blocks from the node, which then are in the cache.
func (f *Filter) ReadAt(ctx context.Context, p []byte, off int64) (n int, err error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if off < 0 {
		return 0, fmt.Errorf("%w: offset %d", storage.ErrOutOfRange, off)
	}
	r := reader{Filter: f}
	if r.size, err = f.next.Size(ctx); err != nil {
		return 0, err
	}
	if r.most, err = f.next.Limit(ctx, storage.MaxData); err != nil {
		return 0, err
	}
	if left := max(0, r.size-off); int64(len(p)) > left {
		p, err = p[:left], io.EOF
	}
	for n < len(p) {
		k, err := r.some(ctx, p[n:], off+int64(n))
		if n += k; err != nil {
			return n, err
		}
	}
	return n, err
}

// A reader is what one read knows.
type reader struct {
	*Filter
	size int64 // of the node, when it began
	most int64 // the node's max_data
}

// some reads a beginning of p, which may be nothing: then it is to be called
// again. off lies inside the node.
func (r reader) some(ctx context.Context, p []byte, off int64) (int, error) {
	block, end := off>>r.bits, off+int64(len(p))
	need := min(r.block, r.size-block<<r.bits)
	r.mu.Lock()
	at, found := r.index.at[block]
	if found && r.index.slots[at].fill == nil && r.index.slots[at].length < need {
		r.index.drop(at) // the node has grown
		found = false
	}
	if !found {
		return r.miss(ctx, p, off)
	}
	s := &r.index.slots[at]
	if run := s.fill; run != nil {
		r.mu.Unlock()
		select {
		case <-run.done:
			return 0, nil
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	s.readers, s.used = s.readers+1, true
	r.mu.Unlock()
	r.hits.Add(1)
	return r.hit(ctx, at, p[:min(end, (block+1)<<r.bits)-off], off)
}

// hit reads from a slot that is pinned; it unpins it.
func (r reader) hit(ctx context.Context, at int, p []byte, off int64) (int, error) {
	n, err := readAll(ctx, r.file, p, r.place(at)+off&(r.block-1))
	failed := err != nil || n < len(p)
	r.mu.Lock()
	if failed && ctx.Err() == nil {
		r.index.retire(at)
	}
	r.index.unpin(at)
	r.mu.Unlock()
	if !failed {
		return n, nil
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	r.errors.Add(1)
	return r.direct(ctx, p, off)
}

// direct reads from the node and leaves the cache alone.
func (r reader) direct(ctx context.Context, p []byte, off int64) (int, error) {
	n, err := readAll(ctx, r.next, p, off)
	if err == nil && n < len(p) {
		err = io.EOF // it has become shorter
	}
	return n, err
}

// miss reads blocks that are not there, from the one of off on. r.mu is held, and
// unlocked.
func (r reader) miss(ctx context.Context, p []byte, off int64) (int, error) {
	block, end := off>>r.bits, off+int64(len(p))
	last := block + r.runLength(off, end)
	run := r.index.claim(block, last)
	if run == nil {
		missing := r.index.missing(block, last)
		r.mu.Unlock()
		r.misses.Add(missing)
		return r.direct(ctx, p[:min(end, (block+missing)<<r.bits)-off], off)
	}
	r.mu.Unlock()
	r.misses.Add(int64(len(run.slots)))
	return r.fetch(ctx, run, p, off)
}

// runLength is how many blocks from that of off on are fetched at once: as many
// as the node gives at once, and if they do not all lie in [off, end), few enough
// for a buffer; at least one.
func (r reader) runLength(off, end int64) int64 {
	block := off >> r.bits
	whole := end>>r.bits - block
	run := (end-1)>>r.bits + 1 - block
	if run<<r.bits > bounceMost {
		run = max(int64(bounceMost)>>r.bits, 1)
		if off&(r.block-1) == 0 {
			run = max(whole, 1)
		}
	}
	return max(1, min(run, r.most>>r.bits))
}

// fetch reads a run from the node and publishes it. What p wants of it is in p
// then.
func (r reader) fetch(ctx context.Context, run *fill, p []byte, off int64) (int, error) {
	n, lo := int64(len(run.slots))<<r.bits, run.first<<r.bits
	buf := p
	if lo != off || n > int64(len(p)) {
		bounce := r.buffers.Get().(*[]byte)
		defer r.buffers.Put(bounce)
		if int64(cap(*bounce)) < n {
			*bounce = make([]byte, n)
		}
		buf = *bounce
	}
	buf = buf[:n]
	got, err := readAll(ctx, r.next, buf, lo)
	if err != nil {
		r.publish(run, 0)
		return 0, err
	}
	clear(buf[got:])
	r.store(ctx, run, buf)
	r.publish(run, int64(got))
	if off-lo >= int64(got) {
		return 0, io.EOF // it has become shorter
	}
	if lo != off || n > int64(len(p)) {
		got = copy(p, buf[off-lo:got])
	}
	return got, nil
}

// store writes a run to the file, side by side what lies so. Slots of which that
// fails are retired, unless it is ctx that ended: then they are dropped.
func (r reader) store(ctx context.Context, run *fill, buf []byte) {
	for i := 0; i < len(run.slots); {
		k := 1
		for i+k < len(run.slots) && run.slots[i+k] == run.slots[i]+k {
			k++
		}
		if err := writeAll(ctx, r.file, buf[i<<r.bits:(i+k)<<r.bits], r.place(run.slots[i])); err != nil {
			ended := ctx.Err() != nil
			r.mu.Lock()
			for _, at := range run.slots[i : i+k] {
				if ended {
					r.index.drop(at)
				} else {
					r.index.retire(at)
				}
			}
			r.mu.Unlock()
			if !ended {
				r.errors.Add(1)
			}
		}
		i += k
	}
}

// publish ends a run of which the first got bytes are of the node.
func (r reader) publish(run *fill, got int64) {
	r.mu.Lock()
	for _, at := range run.slots {
		r.index.publish(at, max(0, min(got, r.block)))
		got -= r.block
	}
	r.mu.Unlock()
	close(run.done)
}

// place is where a slot is in the file.
func (f *Filter) place(at int) int64 { return Base + int64(at)<<f.bits }

// readAll reads up to the end of the node, in pieces that it takes.
func readAll(ctx context.Context, node *storage.Node, p []byte, off int64) (n int, err error) {
	most, err := node.Limit(ctx, storage.MaxData)
	if err != nil {
		return 0, err
	}
	for n < len(p) {
		part := p[n : n+int(min(int64(len(p)-n), most))]
		k, err := node.ReadAt(ctx, part, off+int64(n))
		n += k
		switch {
		case k == len(part):
		case err == io.EOF: //nolint:errorlint // File's contract is a bare io.EOF, as io.ReaderAt's
			return n, nil
		case err == nil:
			return n, fmt.Errorf("%s: %w: a short read without an error", node.Name(), storage.ErrContract)
		default:
			return n, err
		}
	}
	return n, nil
}

// writeAll writes p, in pieces that the node takes.
func writeAll(ctx context.Context, node *storage.Node, p []byte, off int64) error {
	most, err := node.Limit(ctx, storage.MaxData)
	if err != nil {
		return err
	}
	for len(p) > 0 {
		n, err := node.WriteAt(ctx, p[:min(int64(len(p)), most)], off)
		if err != nil {
			return err
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}
