package transfer

import (
	"context"
	"sync"
)

// A flow is one run of a copy: the planner, the workers, and what passes between
// them. Its goroutines end with its context, or when there is nothing more.
type flow struct {
	c     *copier
	todo  chan *piece
	done  chan *piece   // closed when all of them have ended
	slots chan struct{} // one for each piece that is planned and not yet counted
	wg    sync.WaitGroup
	abort func()

	mu  sync.Mutex // protects err
	err error      // of the planner
}

func newFlow(c *copier) *flow {
	return &flow{
		c:     c,
		todo:  make(chan *piece),
		done:  make(chan *piece, c.opt.Workers),
		slots: make(chan struct{}, 8*c.opt.Workers),
	}
}

func (f *flow) start(ctx context.Context, cancel context.CancelCauseFunc) {
	f.abort = func() { cancel(context.Canceled) }
	from := f.c.saved.Offset
	f.wg.Go(func() {
		defer close(f.todo)
		if err := f.c.plan(ctx, from, func(p *piece) bool { return f.send(ctx, p) }); err != nil {
			f.mu.Lock()
			f.err = err
			f.mu.Unlock()
		}
	})
	for range f.c.opt.Workers {
		f.wg.Go(func() {
			for p := range f.todo {
				if p.span {
					p.err = f.c.stream(ctx, p, func(part *piece) error { return f.pass(ctx, part) })
					if p.err == nil {
						continue
					}
				} else {
					p.err = f.c.copy(ctx, p)
				}
				_ = f.pass(ctx, p) // if not, nobody waits for it
			}
		})
	}
	go func() {
		f.wg.Wait()
		close(f.done)
	}()
}

// send gives a piece to a worker, once there is a slot for it.
func (f *flow) send(ctx context.Context, p *piece) bool {
	select {
	case f.slots <- struct{}{}:
	case <-ctx.Done():
		return false
	}
	select {
	case f.todo <- p:
		return true
	case <-ctx.Done():
		return false
	}
}

// pass hands over what is done.
func (f *flow) pass(ctx context.Context, p *piece) error {
	select {
	case f.done <- p:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// release gives the slot of a piece back.
func (f *flow) release() { <-f.slots }

// failure is why the planner ended too early.
func (f *flow) failure() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

// stop waits for the goroutines, which the context has told to end.
func (f *flow) stop() {
	for range f.done {
	}
}
