package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/extentd/extentd/client/transfer"
	"github.com/extentd/extentd/service"
)

// A copySource is a source that is open.
type copySource interface {
	transfer.Source
	endpoint() transfer.Endpoint
	close() error
}

// A copyTarget is a target: planned first, then created or reused, and in the end
// finished or discarded. The methods of transfer.Target are for one that is open.
type copyTarget interface {
	transfer.Target
	ReadAt(ctx context.Context, p []byte, off int64) error
	endpoint() transfer.Endpoint
	// stateFile is where the state of the copy is kept by default, "" for nowhere.
	stateFile() string
	// create makes it, or opens what may be written over.
	create(ctx context.Context, size int64) error
	// reuse opens what an earlier copy left.
	reuse(ctx context.Context) error
	// isZero reports whether all of it reads as zeros.
	isZero() bool
	// reopen is its content as a source.
	reopen(ctx context.Context) (copySource, error)
	// finish makes it what the user asked for. resumed: writing it was
	// interrupted once.
	finish(ctx context.Context, resumed bool) error
	// discard removes what create has made.
	discard(ctx context.Context) error
	close() error
}

// isNBD reports whether an argument is the URI of an export.
func isNBD(arg string) bool {
	scheme, _, found := strings.Cut(arg, "://")
	if !found {
		scheme, _, found = strings.Cut(arg, ":")
	}
	switch strings.ToLower(scheme) {
	case "nbd", "nbds", "nbd+unix", "nbds+unix":
		return found
	}
	return false
}

// openSource opens what an argument names.
func (f *copyFlags) openSource(ctx context.Context, arg string) (copySource, error) {
	switch {
	case isRemote(arg):
		return f.openRemoteSource(ctx, arg)
	case f.changesOnly():
		return nil, fmt.Errorf("%s: only an image of an extentd tells what has changed (since, dirty)", arg)
	case isNBD(arg):
		return f.openNBDSource(ctx, arg)
	}
	s, err := openLocal(ctx, arg, f.sourceFormat, f.backingDirs, f.allowChanges)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", arg, err)
	}
	return s, nil
}

// sameFile reports whether both arguments name one file.
func sameFile(from, to string) bool {
	a, err := os.Stat(from)
	if err != nil {
		return false
	}
	b, err := os.Stat(to)
	return err == nil && os.SameFile(a, b)
}

// planTarget looks at an argument, and touches nothing.
func (f *copyFlags) planTarget(arg string) (copyTarget, error) {
	switch {
	case isRemote(arg):
		return f.planRemoteTarget(arg)
	case isNBD(arg):
		return f.planNBDTarget(arg)
	}
	return f.planFileTarget(arg)
}

// formatFor is the format of a new image.
func formatFor(name, given string) (string, error) {
	drivers := formats()
	if given == "" {
		given = service.FormatOf(name, drivers)
	}
	if given == "" {
		return "", errors.New("the name does not tell the format: give --target-format")
	}
	if _, known := drivers[given]; !known {
		return "", fmt.Errorf("unknown format %q", given)
	}
	return given, nil
}

// creation reads the options of a new image, as the verb create does.
func (f *copyFlags) creation(format string) (service.CreateRequest, error) {
	r := service.CreateRequest{Format: format}
	var c createFlags
	for _, list := range f.options {
		for _, field := range strings.Split(list, ",") {
			key, value, _ := strings.Cut(field, "=")
			err := c.set(&r, key, value)
			if key == "size" || c.backing != "" || c.backingFormat != "" || r.DataFile != "" {
				err = errors.New("a copy has the source's size, no backing, and no data file")
			}
			if err != nil {
				return r, fmt.Errorf("option %q: %w", field, err)
			}
		}
	}
	return r, nil
}
