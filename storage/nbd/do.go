package nbd

import (
	"context"
	"errors"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/nbd/wire"
)

// tries bounds how often a request is given to a connection.
const tries = 5

// An ask is what a request is made of, once or more often.
type ask struct {
	command wire.Command
	flags   wire.Flags
	off, n  int64  // a block status may be of less
	dst     []byte // of a read
	payload []byte // of a write
	// status gets the descriptors of a block status; they are good until it
	// returns.
	status func(*conn, []wire.Descriptor) error
}

// do has something done, on whatever connection. It is repeated on another one where
// that can do no harm: see the package's comment.
func (f *File) do(ctx context.Context, a *ask) error {
	if err := f.settle(ctx, a); err != nil {
		return err
	}
	for try := 1; ; try++ {
		c, err := f.acquire(ctx)
		if err != nil {
			return err
		}
		err = f.on(ctx, c, a)
		c.load.Add(-1)
		lost, ok := errors.AsType[*lostError](err)
		if !ok {
			return err
		}
		if f.life.Err() != nil {
			return storage.ErrClosed
		}
		if try == tries || !lost.again && !a.repeatable() {
			return err
		}
	}
}

// repeatable reports whether doing it twice is doing it once, whoever else does what
// in between.
func (a *ask) repeatable() bool {
	return a.command == wire.CmdRead || a.command == wire.CmdBlockStatus
}

// on has something done on one connection.
func (f *File) on(ctx context.Context, c *conn, a *ask) error {
	n := a.n
	if a.command == wire.CmdBlockStatus {
		if !c.mapped {
			return a.status(c, nil)
		}
		if !c.extended {
			n = min(n, mostUncounted-f.export.minimum)
		}
	}
	r := newRequest(a.command, a.flags, a.off, n)
	r.dst, r.payload = a.dst, a.payload
	if err := c.do(ctx, r); err != nil {
		if r.left && r.changes() {
			f.orphan(r)
		}
		return err
	}
	var err error
	if a.status != nil {
		err = a.status(c, r.status)
	}
	r.free()
	return err
}
