package api

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/extentd/extentd/load"
	"github.com/extentd/extentd/storage/block"
)

// A sparseBody gathers parts, and sends them. release must be called.
type sparseBody struct {
	a        *dataAnswer
	boundary string // random: what a guest has written cannot be taken for it
	begun    bool   // the header has been sent
	count    int64  // of parts
	text     []byte // gathered, in buffer
	buffer   *[]byte
	pool     *sync.Pool
	since    time.Time // when text was sent last
	taken    int64     // of the memory for transfers, bytes
}

// reserve takes memory: for a stream, and for what is gathered.
func (b *sparseBody) reserve(ctx context.Context) error {
	memory := b.a.s.opt.Load.Memory()
	if err := memory.Long(ctx, block.StreamLeast+load.Least); err != nil {
		return err
	}
	b.taken, b.pool = block.StreamLeast+load.Least, &smallBuffers
	if memory.Spare(pieceSize) {
		b.taken += pieceSize
		b.pool = &pieceBuffers
	}
	b.buffer = b.pool.Get().(*[]byte)
	b.text, b.since = (*b.buffer)[:0], time.Now()
	return nil
}

func (b *sparseBody) release() {
	b.pool.Put(b.buffer)
	b.a.s.opt.Load.Memory().Put(b.taken)
}

// partRoom is more than the header of a part has, bytes.
const partRoom = 256

// add adds a part. One of zeros has no bytes, and says so by the unit of its range:
// who does not know it finds no range, and not one that lacks its bytes.
func (b *sparseBody) add(p part) error {
	if cap(b.text)-len(b.text) < partRoom {
		if err := b.flush(); err != nil {
			return err
		}
	}
	if b.count++; b.count > 1 {
		b.text = append(b.text, "\r\n"...)
	}
	unit := "bytes "
	if p.zero {
		unit = "zeros "
	}
	b.text = append(b.text, "--"...)
	b.text = append(b.text, b.boundary...)
	b.text = append(b.text, "\r\nContent-Type: "+octets+"\r\nContent-Range: "...)
	b.text = append(b.text, unit...)
	b.text = strconv.AppendInt(b.text, p.off, 10)
	b.text = append(b.text, '-')
	b.text = strconv.AppendInt(b.text, p.off+p.n-1, 10)
	b.text = append(b.text, '/')
	b.text = strconv.AppendInt(b.text, b.a.size, 10)
	b.text = append(b.text, "\r\n\r\n"...)
	if !p.zero {
		if err := b.data(p); err != nil {
			return err
		}
	}
	return b.soon()
}

// data adds the bytes of a part: short ones to what is gathered.
func (b *sparseBody) data(p part) error {
	ctx := b.a.r.Context()
	if p.n <= int64(cap(b.text)-len(b.text)) {
		at := len(b.text)
		b.text = b.text[:at+int(p.n)]
		return b.a.d.ReadAt(ctx, b.text[at:], p.off)
	}
	stream, err := b.a.d.StreamWithin(ctx, p.off, p.n, b.a.s.opt.Load.Memory())
	if err != nil {
		return err
	}
	defer stream.Close() //nolint:errcheck // of reading, there is nothing left to fail
	if err := b.flush(); err != nil {
		return err
	}
	n, err := stream.WriteTo(b.a.w)
	if err == nil && n != p.n {
		err = fmt.Errorf("%w: %d of %d bytes at %d", io.ErrUnexpectedEOF, n, p.n, p.off)
	}
	b.since = time.Now()
	return err
}

// soon sends what is gathered where the rest is long in coming.
func (b *sparseBody) soon() error {
	if time.Since(b.since) < pieceTime {
		return nil
	}
	if err := b.flush(); err != nil {
		return err
	}
	if f, ok := b.a.w.(http.Flusher); ok {
		f.Flush()
	}
	return nil
}

// flush sends what is gathered.
func (b *sparseBody) flush() error {
	if !b.begun {
		b.begin(-1)
	}
	if len(b.text) == 0 {
		return nil
	}
	_, err := b.a.w.Write(b.text)
	b.text, b.since = b.text[:0], time.Now()
	return err
}
