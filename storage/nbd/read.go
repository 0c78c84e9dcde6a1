package nbd

import (
	"context"
	"fmt"
	"io"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/nbd/wire"
)

// ReadAt reads len(p) bytes from off; it is io.EOF where the export ends. One that is
// longer than the limit MaxData is several requests. When the context ends it returns
// at once, and p is not touched any more.
func (f *File) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := f.usable(ctx); err != nil {
		return 0, err
	}
	switch {
	case off < 0:
		return 0, fmt.Errorf("%w: offset %d", storage.ErrOutOfRange, off)
	case len(p) == 0:
		return 0, nil
	case off >= f.export.size:
		return 0, io.EOF
	}
	var end error
	if left := f.export.size - off; int64(len(p)) > left {
		p, end = p[:left], io.EOF
	}
	for done := 0; done < len(p); {
		part := p[done:min(len(p), done+int(f.export.data))]
		a := ask{command: wire.CmdRead, off: off + int64(done), n: int64(len(part)), dst: part}
		if err := f.do(ctx, &a); err != nil {
			return done, err
		}
		done += len(part)
	}
	return len(p), end
}
