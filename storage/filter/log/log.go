// Package log is the filter that writes a record of every operation, at the debug
// level, when it is done. It changes nothing. Where that level is off it costs
// a question to the logger, and allocates nothing.
//
// A record holds no bytes of the file: "operation", with the attributes node (the
// name of the node below), op, offset and length in bytes, took, and, of an
// operation that failed, error. The offset of a truncate is the new size. Reads
// that meet the end of the file have not failed.
package log

import (
	"context"
	"io"
	"log/slog"
	"time"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/filter"
)

// Options configure the filter.
type Options struct {
	// Logger takes the records. Default: [slog.Default], as it is when the filter
	// is made.
	Logger *slog.Logger
}

// New returns a filter over next, which it closes.
func New(next *storage.Node, opt Options) (filter.Filter, error) {
	if opt.Logger == nil {
		opt.Logger = slog.Default()
	}
	return filter.Interpose(next, &records{to: opt.Logger, node: next.Name()}), nil
}

type records struct {
	to   *slog.Logger
	node string
}

// Interpose has the node below asked, and writes what came of it.
func (l *records) Interpose(ctx context.Context, r filter.Request) (int, error) {
	if !l.to.Enabled(ctx, slog.LevelDebug) {
		return r.Do(ctx)
	}
	begun := time.Now()
	n, err := r.Do(ctx)
	l.write(ctx, r, time.Since(begun), err)
	return n, err
}

func (l *records) write(ctx context.Context, r filter.Request, took time.Duration, err error) {
	attrs := [...]slog.Attr{
		slog.String("node", l.node), slog.String("op", r.Op.String()),
		slog.Int64("offset", r.Offset), slog.Int64("length", r.Length), slog.Duration("took", took),
		slog.Any("error", err),
	}
	all := attrs[:]
	if err == nil || err == io.EOF { //nolint:errorlint // the end of a file is a bare io.EOF
		all = attrs[:len(attrs)-1]
	}
	l.to.LogAttrs(ctx, slog.LevelDebug, "operation", all...)
}
