package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime/debug"
	"sync"
)

// A sink is what the body of a request is written to.
type sink interface {
	WriteAt(ctx context.Context, p []byte, off int64) error
}

// Sizes of buffers. A body that fits in one is written at once; a longer one in
// chunks, of which two are in memory. They are as large as the clusters, so that
// each is written whole: qcow2 has none that are larger.
const (
	smallBody  = 64 << 10
	chunk      = 1 << 20
	largeChunk = 2 << 20
)

var (
	smallBuffers = sync.Pool{New: func() any { b := make([]byte, smallBody); return &b }}
	chunkBuffers = sync.Pool{New: func() any { b := make([]byte, chunk); return &b }}
	largeBuffers = sync.Pool{New: func() any { b := make([]byte, largeChunk); return &b }}
)

// An upload writes the body of a request to a range. Nothing is held while its
// client is slow, but the buffers.
type upload struct {
	w    http.ResponseWriter
	r    *http.Request
	to   sink
	part byteRange
	unit int64 // what is best written whole, a power of two
}

// run writes the whole body, which must be exactly as long as the range. One of
// a single chunk is written when all of it is there; of a longer one, what came
// before an error has been written. Nothing is written outside the range.
func (u *upload) run(ctx context.Context) error {
	size, pool := int64(chunk), &chunkBuffers
	if u.unit > chunk {
		size, pool = largeChunk, &largeBuffers
	}
	switch {
	case u.part.n == 0:
		return u.end()
	case u.part.n <= smallBody:
		return u.single(ctx, &smallBuffers)
	case u.part.n <= size:
		return u.single(ctx, pool)
	}
	return u.several(ctx, size, pool)
}

// fill reads the next len(p) bytes of the body.
func (u *upload) fill(p []byte) error {
	n, err := io.ReadFull(u.r.Body, p)
	countReceived(u.w, int64(n))
	if err != nil {
		return bodyError(err)
	}
	return nil
}

// end makes sure that the body has ended, where its length was not announced.
func (u *upload) end() error {
	if u.r.ContentLength >= 0 {
		return nil
	}
	var one [1]byte
	n, err := io.ReadFull(u.r.Body, one[:])
	if n > 0 {
		return invalid("body", ruleLength, fmt.Sprintf("is longer than the %d bytes of the range", u.part.n))
	}
	if !errors.Is(err, io.EOF) {
		return bodyError(err)
	}
	return nil
}

func (u *upload) single(ctx context.Context, pool *sync.Pool) error {
	buffer := pool.Get().(*[]byte)
	defer pool.Put(buffer)
	p := (*buffer)[:u.part.n]
	if err := u.fill(p); err != nil {
		return err
	}
	if err := u.end(); err != nil {
		return err
	}
	return u.to.WriteAt(ctx, p, u.part.off)
}

// A filled buffer is a chunk of the body that has been read.
type filled struct {
	buffer *[]byte
	off, n int64
}

// A freed buffer comes back from the one who writes, with what became of it.
type freed struct {
	buffer *[]byte
	err    error
}

// several reads one chunk while another is written. Its receiver is a copy, so
// that the uploads of a single chunk stay on the stack.
func (u upload) several(ctx context.Context, size int64, pool *sync.Pool) error {
	full := make(chan filled)
	free := make(chan freed, 2)
	for range cap(free) {
		free <- freed{buffer: pool.Get().(*[]byte)}
	}
	var writer sync.WaitGroup
	writer.Go(func() {
		for c := range full {
			free <- freed{c.buffer, u.write(ctx, c)}
		}
	})
	err := u.read(size, full, free)
	close(full)
	writer.Wait()
	for range cap(free) {
		f := <-free
		pool.Put(f.buffer)
		if f.err != nil { // before what is wrong with the rest of the body
			err = f.err
		}
	}
	return err
}

// read reads the body into free buffers, until a chunk could not be written.
// Chunks end at multiples of their size. All buffers are on their way back to
// free when it returns.
func (u *upload) read(size int64, full chan<- filled, free chan freed) error {
	end := u.part.off + u.part.n
	for off := u.part.off; off < end; {
		f := <-free
		if f.err != nil {
			free <- f
			return nil // whoever collects the buffers finds it
		}
		n := min(size-off%size, end-off)
		err := u.fill((*f.buffer)[:n])
		if err == nil && off+n == end {
			err = u.end()
		}
		if err != nil {
			free <- f
			return err
		}
		full <- filled{f.buffer, off, n}
		off += n
	}
	return nil
}

// write writes a chunk.
func (u *upload) write(ctx context.Context, c filled) (err error) {
	defer func() {
		if p := recover(); p != nil { // as net/http does for its own goroutines
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return u.to.WriteAt(ctx, (*c.buffer)[:c.n], c.off)
}
