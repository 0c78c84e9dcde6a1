package nbd

import (
	"context"
	"math/bits"
	"sync"
)

// A budget shares out memory, first come first served.
type budget struct {
	mu    sync.Mutex // protects all below
	free  int64      // bytes
	queue []*waiter  // those who wait, the first first
}

type waiter struct {
	n     int64
	ready chan struct{} // closed when it has its share
}

func newBudget(n int64) *budget { return &budget{free: n} }

// try takes n bytes if they are there, and nobody waits.
func (b *budget) try(n int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.queue) > 0 || b.free < n {
		return false
	}
	b.free -= n
	return true
}

// take waits for n bytes, which are no more than there are in all.
func (b *budget) take(ctx context.Context, n int64) error {
	if b.try(n) {
		return nil
	}
	b.mu.Lock()
	w := &waiter{n: n, ready: make(chan struct{})}
	b.queue = append(b.queue, w)
	b.serve()
	b.mu.Unlock()
	select {
	case <-w.ready:
		return nil
	case <-ctx.Done():
	}
	b.leave(w)
	return ctx.Err()
}

// leave is what a waiter does who no longer waits.
func (b *budget) leave(w *waiter) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, o := range b.queue {
		if o == w {
			b.queue = append(b.queue[:i], b.queue[i+1:]...)
			b.serve()
			return
		}
	}
	b.free += w.n // it was served meanwhile
	b.serve()
}

// put gives n bytes back.
func (b *budget) put(n int64) {
	if n == 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.free += n
	b.serve()
}

// serve is called with mu held.
func (b *budget) serve() {
	for len(b.queue) > 0 && b.free >= b.queue[0].n {
		w := b.queue[0]
		b.queue = b.queue[1:]
		b.free -= w.n
		close(w.ready)
	}
}

// buffers are kept for use again, by size: 4 KiB, 16 KiB, and so on, 32 MiB.
type buffers [classes]sync.Pool

const (
	smallest = 12 // 4 KiB
	classes  = 8
)

// A buffer holds the payload of a request or of its reply.
type buffer struct {
	class int
	data  []byte // as long as its class says
}

// classOf is the class of buffers for n bytes, up to maxData.
func classOf(n int64) int {
	if n <= 1<<smallest {
		return 0
	}
	return min((bits.Len64(uint64(n-1))-smallest+1)/2, classes-1)
}

// sizeOf is the size of the buffers of a class, bytes.
func sizeOf(class int) int64 { return min(int64(1)<<(smallest+2*class), maxData) }

// get returns a buffer for n bytes, up to maxData. What is in it is anything.
func (b *buffers) get(n int64) *buffer {
	class := classOf(n)
	if buf, ok := b[class].Get().(*buffer); ok {
		return buf
	}
	return &buffer{class: class, data: make([]byte, sizeOf(class))}
}

func (b *buffers) put(buf *buffer) { b[buf.class].Put(buf) }
