package service

import (
	"context"
	"errors"

	"github.com/extentd/extentd/storage"
)

// bottom is the node that something stands on, as Options.Observe has it. On an
// error f stays the caller's.
func (s *Service) bottom(name string, f storage.File) (*storage.Node, error) {
	opt := storage.NodeOptions{Check: s.opt.Check}
	node := storage.NewNode(name, f, opt)
	if s.opt.Observe == nil {
		return node, nil
	}
	seen, err := s.opt.Observe(node)
	if err != nil {
		return nil, err
	}
	return storage.NewNode(name, seen, opt), nil
}

// trace tells Options.Trace that work begins.
func (s *Service) trace(ctx context.Context, work, image string) (_ context.Context, end func(error)) {
	if s.opt.Trace == nil {
		return ctx, func(error) {}
	}
	return s.opt.Trace(ctx, work, image)
}

// outlive returns a context that has what ctx holds, and ends with the service
// instead of with ctx: for work that others wait for too.
func (s *Service) outlive(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(s.ctx, cancel)
	return ctx, func() {
		stop()
		cancel()
	}
}

// delete forgets what was known of an image that is no more.
func (c *tally) delete(image string, err error) {
	c.met(err)
	if err == nil || errors.Is(err, storage.ErrNotFound) {
		c.setLeaked(image, 0)
	}
}
