package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/extentd/extentd/client"
	"github.com/extentd/extentd/client/transfer"
)

// A summer can tell the checksum of its first bytes without their being read here.
type summer interface {
	Sum(ctx context.Context, n int64) (string, error)
}

// compare makes sure that the target has what the source has. A server computes the
// checksum of an image itself.
func (c *copying) compare(ctx context.Context, result *transfer.Result, show *copyBar) error {
	show.verifying()
	want, known, err := c.sumBy(ctx, c.source)
	switch {
	case err != nil:
		return fmt.Errorf("verify: the source: %w", err)
	case !known:
		want = result.Sum
	case result.Sum == "":
		result.Sum = want // of changes there was none
	case want != result.Sum && !c.allowChanges:
		return fmt.Errorf("verify: the source has the checksum %s, and what came of it %s", want, result.Sum)
	default:
		want = result.Sum
	}
	back, err := c.target.reopen(ctx)
	if err != nil {
		return fmt.Errorf("verify: %w", err)
	}
	got, known, err := c.sumBy(ctx, back)
	if err == nil && !known {
		var read transfer.Result
		read, err = transfer.Read(ctx, back, c.source.Size(), transfer.Options{Workers: c.connections, Progress: show.update})
		got = read.Sum
	}
	if err = errors.Join(err, back.close()); err != nil {
		return fmt.Errorf("verify: %w", err)
	}
	if got != want {
		return fmt.Errorf("verify: the target has the checksum %s, and the source %s", got, want)
	}
	return nil
}

// sumBy asks an end of the copy for its checksum. known: it is one that can tell; a
// server of before there were checksums cannot.
func (c *copying) sumBy(ctx context.Context, of copySource) (sum string, known bool, err error) {
	s, ok := of.(summer)
	if !ok {
		return "", false, nil
	}
	sum, err = s.Sum(ctx, c.source.Size())
	if client.Kind(err) == "not-found" {
		return "", false, nil
	}
	return sum, err == nil, err
}
