package nbd

import (
	"context"
	"fmt"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/nbd/wire"
)

const data = storage.Alloc | storage.OffsetValid

// status is what the flags of base:allocation mean. A hole that is not said to read
// as zeros reads as anything: it is data.
func status(flags uint64) storage.Status {
	switch {
	case flags&uint64(wire.StateZero) == 0:
		return data
	case flags&uint64(wire.StateHole) == 0:
		return data | storage.Zero
	}
	return storage.Zero | storage.OffsetValid
}

// Extents appends what the server says of [off, off+n), and may stop early. A server
// without base:allocation has one extent of data, up to the end of the export.
func (f *File) Extents(ctx context.Context, off, n int64, into *storage.ExtentList) error {
	if err := f.usable(ctx); err != nil {
		return err
	}
	if err := storage.CheckRange(off, n, f.export.size); err != nil {
		return err
	}
	if n == 0 {
		return fmt.Errorf("%w: no extents of an empty range at %d", storage.ErrOutOfRange, off)
	}
	mask := f.export.minimum - 1
	at := off &^ mask
	a := ask{command: wire.CmdBlockStatus, off: at, n: (off+n+mask)&^mask - at}
	a.status = func(c *conn, all []wire.Descriptor) error {
		if !c.mapped {
			return into.Add(storage.Mapping{Offset: off, Length: f.export.size - off, NodeOffset: off, Status: data})
		}
		return f.addStatus(off, off+n, at, all, into)
	}
	return f.do(ctx, &a)
}

// addStatus appends descriptors that begin at a multiple of the minimum and end in the
// export, as far as [off, end) and the list want them. A block that a descriptor divides is told as
// data where it comes first, and not at all after that.
func (f *File) addStatus(off, end, at int64, all []wire.Descriptor, into *storage.ExtentList) error {
	_, hi := into.Window()
	end = min(end, hi)
	for i, d := range all {
		next, s := min(at+int64(d.Length), f.export.size), status(d.Flags)
		if odd := next & (f.export.minimum - 1); odd != 0 {
			if next -= odd; next <= at && i > 0 {
				return nil
			} else if next <= at {
				next, s = at+f.export.minimum, data
			}
			all = all[:i+1]
		}
		begin := max(at, off)
		if err := into.Add(storage.Mapping{Offset: begin, Length: next - begin, NodeOffset: begin, Status: s}); err != nil {
			return err
		}
		if at = next; at >= end || i+1 == len(all) {
			return nil
		}
	}
	return nil
}
