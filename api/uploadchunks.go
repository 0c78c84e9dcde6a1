package api

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync"
)

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

// several reads one chunk while another is written, and returns where it ended:
// before the end of the range, when the client is slow. Its receiver is a copy, so
// that the uploads of a single chunk stay on the stack.
func (u upload) several(ctx context.Context, size int64, pool *sync.Pool) (off int64, err error) {
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
	off, err = u.read(size, full, free)
	close(full)
	writer.Wait()
	for range cap(free) {
		f := <-free
		pool.Put(f.buffer)
		if f.err != nil { // before what is wrong with the rest of the body
			err = f.err
		}
	}
	return off, err
}

// read reads the body into free buffers, until a chunk could not be written, or
// the client is slow. Chunks end at multiples of their size. All buffers are on
// their way back to free when it returns, with where it ended.
func (u *upload) read(size int64, full chan<- filled, free chan freed) (off int64, err error) {
	off = u.part.off
	end := off + u.part.n
	for off < end {
		f := <-free
		if f.err != nil {
			free <- f
			return off, nil // whoever collects the buffers finds it
		}
		p := (*f.buffer)[:min(size-off%size, end-off)]
		n, err := u.fillFast(p, slow)
		if err == nil && off+int64(n) == end {
			err = u.end(off - u.part.off)
		}
		if err != nil {
			free <- f
			return off, err
		}
		full <- filled{f.buffer, off, int64(n)}
		off += int64(n)
		if n < len(p) {
			break
		}
	}
	return off, nil
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
