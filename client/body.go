package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// errStalled: the server sent nothing for too long.
var errStalled = fmt.Errorf("%w: the server has stopped sending", os.ErrDeadlineExceeded)

// A body is one of an answer. Each read has the time of the server's silence, and
// it ends with the context of its request.
type body struct {
	io.ReadCloser
	ctx    context.Context
	cancel context.CancelCauseFunc
	stall  time.Duration
	timer  *time.Timer
}

func newBody(of io.ReadCloser, ctx context.Context, cancel context.CancelCauseFunc, stall time.Duration) *body { //nolint:revive // the context is a field's
	b := &body{ReadCloser: of, ctx: ctx, cancel: cancel, stall: stall}
	b.timer = time.AfterFunc(stall, func() { cancel(errStalled) })
	b.timer.Stop() // time that the reader takes for himself does not count
	return b
}

func (b *body) Read(p []byte) (int, error) {
	b.timer.Reset(b.stall)
	n, err := b.ReadCloser.Read(p)
	b.timer.Stop()
	if err != nil && !errors.Is(err, io.EOF) {
		if cause := context.Cause(b.ctx); cause != nil {
			err = cause
		}
	}
	return n, err
}

func (b *body) Close() error {
	b.timer.Stop()
	err := b.ReadCloser.Close()
	b.cancel(context.Canceled)
	return err
}
