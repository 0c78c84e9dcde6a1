package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/extentd/extentd/client/transfer"
)

// openResumed opens the target of the copy that the state file is of, and makes sure
// that it and the source are what they were. Without a file there is nothing to
// resume.
func (c *copying) openResumed(ctx context.Context) (bool, error) {
	state, err := transfer.LoadState(c.file)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, resumeError(err)
	}
	if err := c.target.reuse(ctx); err != nil {
		return false, resumeError(err)
	}
	c.state = state
	if err := c.state.CheckSame(c.source.endpoint(), c.target.endpoint()); err != nil {
		return false, resumeError(err)
	}
	if state.NoSum && c.checksum {
		return false, resumeError(errors.New("it computes no checksum: give --checksum=false"))
	}
	c.checksum = !state.NoSum
	if err := state.Point.Samples.Match(ctx, c.target); err != nil {
		return false, resumeError(err)
	}
	if state.Source.Tag == "" { // it cannot tell: what was copied is looked at
		err := state.Point.Samples.Match(ctx, c.source)
		if errors.Is(err, transfer.ErrOtherTarget) {
			err = transfer.ErrChanged
		}
		if err != nil {
			return false, resumeError(err)
		}
	}
	c.resumed = true
	return true, nil
}

func resumeError(err error) error {
	return fmt.Errorf("the copy cannot be resumed: %w; without --resume it begins anew", err)
}

// removeState removes the state of a copy that is complete.
func removeState(path string) error {
	if path == "" {
		return nil
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
