package stack_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"syscall"
	"testing"

	"github.com/extentd/extentd/storage"
)

// A run asks the top of a graph, and its model.
type run struct {
	*model
	top    *storage.Node
	random *rand.Rand
	limits storage.Limits
}

// injected reports whether an error is one that the graph may have now and then.
func (r *run) injected(err error) bool { return r.flaky && errors.Is(err, syscall.EIO) }

// failed reports whether an operation may have failed so, and did.
func (r *run) failed(t *testing.T, what string, err error) bool {
	t.Helper()
	if err == nil {
		return false
	}
	if !r.injected(err) {
		t.Fatalf("%s: %v", what, err)
	}
	return true
}

// place is a random range that the limits allow: inside the size, or over it.
func (r *run) place(over bool) (off, n int64) {
	size := r.size()
	reach := size + 1
	if over {
		reach += 24 << 10
	}
	off = r.random.Int64N(reach)
	n = r.random.Int64N(1 << (4 + r.random.IntN(13)))
	if r.random.IntN(4) == 0 { // around a power of two
		off = off&^4095 + r.random.Int64N(5) - 2
		off = max(0, off)
	}
	off -= off % r.limits.Minimum
	n -= n % r.limits.Minimum
	if r.random.IntN(8) == 0 || !over {
		n = min(n, size-off)
	}
	if off+n != size {
		n -= n % r.limits.Minimum
	}
	if off+n > size { // swab has no other sizes
		n -= (off + n) % max(8, r.limits.Minimum)
	}
	if n <= 0 || off+n > size && !over {
		return 0, 0
	}
	return off, min(n, r.limits.MaxData/r.limits.Minimum*r.limits.Minimum)
}

func (r *run) step(t *testing.T) {
	t.Helper()
	switch r.random.IntN(16) {
	case 0, 1, 2, 3:
		r.read(t)
	case 4, 5, 6, 7:
		r.write(t)
	case 8, 9:
		r.zero(t)
	case 10:
		r.trim(t)
	case 11:
		r.truncate(t)
	case 12:
		if err := r.top.Flush(t.Context()); err != nil && !r.readOnly {
			t.Fatal(err)
		}
	case 13:
		r.extents(t)
	case 14:
		r.misaligned(t)
	case 15:
		r.absurd(t)
	}
}

func (r *run) read(t *testing.T) {
	t.Helper()
	off, n := r.place(false)
	p := make([]byte, n)
	got, err := r.top.ReadAt(t.Context(), p, off)
	if err == io.EOF && int64(got) == n { //nolint:errorlint // bare by contract
		err = nil
	}
	if r.failed(t, "read", err) {
		return
	}
	if int64(got) != n {
		t.Fatalf("read of %d bytes at %d of %d = %d without an error", n, off, r.size(), got)
	}
	if err := r.equal(p, off); err != nil {
		t.Fatalf("read of %d bytes at %d: %v", n, off, err)
	}
}

// change does what changes [off, off+n) to content, and says so to the model.
func (r *run) change(t *testing.T, what string, off int64, content []byte, do func() error) {
	t.Helper()
	err := do()
	n := int64(len(content))
	noRoom := r.fixed && off+n > r.size() && (errors.Is(err, storage.ErrNoSpace) || errors.Is(err, storage.ErrOutOfRange))
	switch {
	case r.readOnly:
		if !r.injected(err) && !noRoom && !errors.Is(err, storage.ErrReadOnly) {
			t.Fatalf("%s of what is read-only: %v", what, err)
		}
	case r.injected(err):
		size, err := r.top.Size(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if size > r.size() { // it had grown by then
			was := r.size()
			r.resize(size)
			r.forget(was, size-was)
		}
		r.forget(off, n)
	case r.fixed && off+n > r.size():
		if !noRoom && n > 0 {
			t.Fatalf("%s of %d bytes at %d, past the end %d: %v", what, n, off, r.size(), err)
		}
		r.forget(off, n)
	case err != nil:
		t.Fatalf("%s of %d bytes at %d of %d: %v", what, n, off, r.size(), err)
	default:
		r.model.write(content, off)
	}
}

func (r *run) write(t *testing.T) {
	t.Helper()
	off, n := r.place(true)
	p := make([]byte, 61) // no block is a multiple of it
	for i := range p {
		p[i] = byte(1 + r.random.IntN(255))
	}
	p = bytes.Repeat(p, int(n)/len(p)+1)[:n]
	kept := bytes.Clone(p)
	r.change(t, "write", off, p, func() error {
		done, err := r.top.WriteAt(t.Context(), p, off)
		if err == nil && int64(done) != n {
			t.Fatalf("write of %d bytes = %d without an error", n, done)
		}
		return err
	})
	if !bytes.Equal(kept, p) {
		t.Fatal("a write has changed the caller's buffer")
	}
}

func (r *run) zero(t *testing.T) {
	t.Helper()
	off, n := r.place(true)
	keep := r.random.IntN(2) == 0
	r.change(t, "zero", off, make([]byte, n), func() error { return r.top.Zero(t.Context(), off, n, keep) })
}

func (r *run) trim(t *testing.T) {
	t.Helper()
	off, n := r.place(false)
	err := r.top.Trim(t.Context(), off, n)
	if r.readOnly {
		if !errors.Is(err, storage.ErrReadOnly) && !r.injected(err) {
			t.Fatalf("trim of what is read-only: %v", err)
		}
		return
	}
	r.failed(t, "trim", err)
	r.forget(off, n)
}

func (r *run) truncate(t *testing.T) {
	t.Helper()
	size := max(r.size()+r.random.Int64N(32<<10)-16<<10, 0) &^ 7
	if r.limits.Minimum > 8 && r.random.IntN(2) == 0 {
		size -= size % r.limits.Minimum
	}
	err := r.top.Truncate(t.Context(), size)
	fixed := r.fixed && (errors.Is(err, storage.ErrUnsupported) || err == nil && size == r.size())
	switch {
	case r.injected(err):
		now, err := r.top.Size(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		r.resize(now)
	case r.readOnly:
		if !errors.Is(err, storage.ErrReadOnly) && !fixed {
			t.Fatalf("truncate of what is read-only: %v", err)
		}
	case r.fixed:
		if !errors.Is(err, storage.ErrUnsupported) && (err != nil || size > r.size()) {
			t.Fatalf("truncate to %d of what has a fixed size: %v", size, err)
		}
	case err != nil:
		t.Fatalf("truncate to %d: %v", size, err)
	default:
		r.resize(size)
	}
}

// extents walks all extents: what they call zeros are zeros.
func (r *run) extents(t *testing.T) {
	t.Helper()
	size, err := r.top.Size(t.Context())
	if err != nil || size != r.size() {
		t.Fatalf("size = %d, %v, want %d", size, err, r.size())
	}
	for off := int64(0); off < size; {
		var l storage.ExtentList
		if r.failed(t, "extents", r.top.Extents(t.Context(), off, size-off, &l)) {
			return
		}
		for i := range l.Len() {
			e := l.At(i)
			if e.Offset%r.limits.Minimum != 0 || e.End()%r.limits.Minimum != 0 && e.End() != size {
				t.Fatalf("extent from %d to %d, the minimum is %d", e.Offset, e.End(), r.limits.Minimum)
			}
			if e.End() > size || e.Status.Has(storage.Zero) && r.equal(make([]byte, e.Length), e.Offset) != nil {
				t.Fatalf("extent at %d with length %d of %d is %v", e.Offset, e.Length, size, e.Status)
			}
			if e.Status.Has(storage.OffsetValid) && e.NodeOffset != e.Offset {
				t.Fatalf("extent at %d lies at %d", e.Offset, e.NodeOffset)
			}
		}
		if l.End() <= off {
			t.Fatalf("extents at %d end at %d", off, l.End())
		}
		off = l.End()
	}
}

// misaligned: what is no multiple of the minimum is refused at once.
func (r *run) misaligned(t *testing.T) {
	t.Helper()
	if r.limits.Minimum == 1 || r.size() < 2*r.limits.Minimum {
		return
	}
	for _, c := range [][2]int64{{1, r.limits.Minimum}, {0, r.limits.Minimum - 1}, {r.limits.Minimum, 1}} {
		_, read := r.top.ReadAt(t.Context(), make([]byte, c[1]), c[0])
		_, write := r.top.WriteAt(t.Context(), make([]byte, c[1]), c[0])
		for k, err := range []error{read, write, r.top.Zero(t.Context(), c[0], c[1], false), r.top.Trim(t.Context(), c[0], c[1])} {
			if !errors.Is(err, storage.ErrMisaligned) {
				t.Fatalf("read, write, zero, trim of %d bytes at %d: %d: %v", c[1], c[0], k, err)
			}
		}
	}
}

// absurd: what no file can hold is refused, and changes nothing.
func (r *run) absurd(t *testing.T) {
	t.Helper()
	ctx, unit := t.Context(), r.limits.Minimum
	most := int64(math.MaxInt64) / unit * unit
	for _, off := range []int64{-unit, math.MinInt64, most, storage.MaxSize} {
		write := func() error { _, err := r.top.WriteAt(ctx, make([]byte, unit), off); return err }
		for k, err := range []error{write(), r.top.Zero(ctx, off, unit, true), r.top.Trim(ctx, off, unit)} {
			if !errors.Is(err, storage.ErrOutOfRange) && !errors.Is(err, storage.ErrReadOnly) {
				t.Fatalf("write, zero, trim at %d: %d: %v", off, k, err)
			}
		}
	}
	if n, err := r.top.ReadAt(ctx, make([]byte, unit), storage.MaxSize-unit); n != 0 || err == nil {
		t.Fatalf("read far past the end = %d, %v", n, err)
	}
	var l storage.ExtentList
	for _, c := range [][2]int64{{-unit, unit}, {r.size(), unit}, {0, storage.MaxSize}, {most, most}} {
		if err := r.top.Extents(ctx, c[0], c[1], &l); !errors.Is(err, storage.ErrOutOfRange) && !r.injected(err) {
			t.Fatalf("extents of %d bytes at %d = %v", c[1], c[0], err)
		}
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := r.top.ReadAt(cancelled, make([]byte, unit), 0); !errors.Is(err, context.Canceled) {
		t.Fatalf("read without a context = %v", err)
	}
}
