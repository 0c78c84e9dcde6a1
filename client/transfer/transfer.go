package transfer

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"
)

// Block is what the checksum is computed by, and what is finished as one, bytes.
const Block = 1 << 20

// Errors that callers tell apart.
var (
	// ErrLost: what was written to the target since its last flush may be gone. A
	// target's methods wrap it; Copy writes it again, a few times.
	ErrLost = errors.New("what was not flushed may be lost")
	// ErrChanged: the source is not what it was when the copy began.
	ErrChanged = errors.New("the source has changed")
	// ErrOtherTarget: the target does not hold what was copied to it.
	ErrOtherTarget = errors.New("the target has changed")
)

// Limits are how an endpoint likes to be asked. Bytes.
type Limits struct {
	// Minimum is what offsets and lengths are multiples of, the end of the
	// endpoint excepted: a power of two up to 64 KiB. Default: 1.
	Minimum int64
	// Preferred is how much is best read or written at a time. Default: 1 MiB.
	Preferred int64
	// Hole is the shortest run of zeros that is worth a request of its own, or a
	// hole in the target. Default: 4 KiB.
	Hole int64
}

// An Extent is a part of a source.
type Extent struct {
	Offset, Length int64
	Zero           bool // it reads as zeros
}

// A Source is what is copied. Safe for concurrent use.
type Source interface {
	Size() int64
	Limits() Limits
	// Extents yields what [off, off+n) consists of: in order, without gaps, and
	// beginning at off. An error is yielded last.
	Extents(ctx context.Context, off, n int64) iter.Seq2[Extent, error]
	// ReadAt fills p from off. The range lies inside the source.
	ReadAt(ctx context.Context, p []byte, off int64) error
	// Unchanged fails with ErrChanged if the content is not what it was when the
	// source was opened. One that cannot tell returns nil.
	Unchanged(ctx context.Context) error
}

// A Target is what is copied to. Safe for concurrent use. Errors may wrap ErrLost.
type Target interface {
	Size() int64
	Limits() Limits
	WriteAt(ctx context.Context, p []byte, off int64) error
	// Zero makes [off, off+n) read as zeros, and gives its storage back where that
	// is possible.
	Zero(ctx context.Context, off, n int64) error
	// Flush makes durable what was written before it. It fails with ErrLost if it
	// cannot vouch for all of that.
	Flush(ctx context.Context) error
}

// Options configure a copy. The zero value copies everything.
type Options struct {
	// Workers is how many pieces are under way at a time. Default: 4.
	Workers int
	// TargetIsZero: the target reads as zeros, and zeros need not be written.
	// Default: false.
	TargetIsZero bool
	// NoSum leaves out the checksum. Default: false.
	NoSum bool
	// From is where to go on: a point of a copy of the same source to the same
	// target. Default: the beginning.
	From *Point
	// Save is given a point each time that the target has been flushed, to keep it
	// durably. Its error ends the copy. Default: points are forgotten.
	Save func(Point) error
	// Interval is how often the target is flushed. Default: 5 s.
	Interval time.Duration
	// Progress is told how far the copy is, from one goroutine, often. After
	// ErrLost it goes back. Default: nobody is.
	Progress func(Progress)
}

// Progress is how far a copy is, bytes.
type Progress struct {
	Size    int64 // of the source
	Done    int64 // of it, from the beginning
	Copied  int64 // of that, what was written as data
	Skipped int64 // of that, what is zeros
}

// A Result is what was copied.
type Result struct {
	Progress
	Sum string // "" if it was left out
}

const (
	defaultWorkers  = 4
	defaultInterval = 5 * time.Second
	defaultHole     = 4 << 10
	maxMinimum      = 64 << 10
	maxPiece        = 16 << 20
	mostLosses      = 5 // in a row, without anything flushed between
)

// Copy copies all of the source to the beginning of the target.
func Copy(ctx context.Context, src Source, dst Target, opt Options) (Result, error) {
	if dst.Size() < src.Size() {
		return Result{}, fmt.Errorf("the target has %d bytes, and the source %d", dst.Size(), src.Size())
	}
	c, err := newCopier(src, dst, opt)
	if err != nil {
		return Result{}, err
	}
	for losses := 0; ; {
		before := c.saved.Offset
		err := c.run(ctx)
		switch {
		case err == nil:
			return c.result(), nil
		case !errors.Is(err, ErrLost) || ctx.Err() != nil:
			return c.result(), err
		case c.saved.Offset > before:
			losses = 0
		}
		if losses++; losses > mostLosses {
			return c.result(), fmt.Errorf("again and again: %w", err)
		}
		c.opt.TargetIsZero = false // beyond the point there may be something now
	}
}

// Read reads the first size bytes of the source, and says what they sum up to.
func Read(ctx context.Context, src Source, size int64, opt Options) (Result, error) {
	if src.Size() < size {
		return Result{}, fmt.Errorf("there are %d bytes, and there should be %d", src.Size(), size)
	}
	c, err := newCopier(cut{src, size}, nowhere{size}, Options{
		Workers: opt.Workers, TargetIsZero: true, Progress: opt.Progress, Interval: time.Hour,
	})
	if err != nil {
		return Result{}, err
	}
	err = c.run(ctx)
	return c.result(), err
}

// cut is the beginning of a source.
type cut struct {
	Source
	size int64
}

func (c cut) Size() int64 { return c.size }

// nowhere is a target that forgets.
type nowhere struct{ size int64 }

func (n nowhere) Size() int64                                { return n.size }
func (nowhere) Limits() Limits                               { return Limits{Hole: Block} }
func (nowhere) WriteAt(context.Context, []byte, int64) error { return nil }
func (nowhere) Zero(context.Context, int64, int64) error     { return nil }
func (nowhere) Flush(context.Context) error                  { return nil }
