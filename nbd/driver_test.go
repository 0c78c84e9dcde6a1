package nbd_test

import (
	"context"

	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage"
)

type rawMapper interface {
	storage.WritableMapper
	storage.Resizer
	StartWriting(ctx context.Context) error
	Failed() bool
}

// A hooked image is a raw one with limits, and hooks.
type hooked struct {
	rawMapper
	minimum, most int64
	fetch         func(ctx context.Context) error
	write         func() error
	flush         func() error
}

func (h *hooked) Limit(_ context.Context, which storage.Limit) (int64, error) {
	switch which {
	case storage.Minimum:
		return h.minimum, nil
	case storage.MaxData:
		return h.most, nil
	}
	return 0, nil
}

func (h *hooked) Fetch(ctx context.Context, off, n int64, into *storage.ExtentList) error {
	if h.fetch != nil {
		if err := h.fetch(ctx); err != nil {
			return err
		}
	}
	return h.rawMapper.Fetch(ctx, off, n, into)
}

func (h *hooked) CheckWrite(ctx context.Context, node *storage.Node, off, n int64) error {
	if h.write != nil && n > 0 {
		if err := h.write(); err != nil {
			return err
		}
	}
	return h.rawMapper.CheckWrite(ctx, node, off, n)
}

func (h *hooked) Flush(ctx context.Context) error {
	if h.flush != nil {
		if err := h.flush(); err != nil {
			return err
		}
	}
	return h.rawMapper.Flush(ctx)
}

// with opens raw images with hooks.
func with(h hooked) service.Options {
	d := service.RawDriver()
	open := d.Open
	d.Open = func(ctx context.Context, node *storage.Node, opt service.DriverOptions) (service.Layer, error) {
		l, err := open(ctx, node, opt)
		if err != nil {
			return l, err
		}
		mine := h
		mine.rawMapper = l.Mapper.(rawMapper)
		l.Mapper = &mine
		return l, nil
	}
	return service.Options{Formats: map[string]service.Driver{"raw": d, "qcow2": service.QCOW2Driver()}}
}
