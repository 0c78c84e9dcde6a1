package api

import (
	"context"
	"errors"
	"iter"

	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/block"
)

// An FlaggedExtent is a range that a dialect says the same of, whatever its flags mean.
type FlaggedExtent struct {
	Offset, Length int64
	Flags          uint8
}

// A Said is what is known of some bytes.
type Said struct {
	Zero bool // they read as zeros
	Hole bool // there is no storage for them
	None bool // no layer of the image supplies them
	// Dirty: the bitmap has them. Always false without one.
	Dirty bool
}

// Extents are the window's in order and without gaps, each as long as its flags stay
// the same. bitmap is the dirty bitmap that is looked at, "" for none.
func Extents(ctx context.Context, h *service.Handle, win Window, bitmap string, flags func(s Said) uint8) iter.Seq2[FlaggedExtent, error] {
	return func(yield func(FlaggedExtent, error) bool) {
		j := joiner{yield: yield, more: true}
		var err error
		if bitmap == "" {
			err = j.walk(ctx, h, win, false, flags)
		} else {
			err = j.walkDirty(ctx, h, win, bitmap, flags)
		}
		switch {
		case err != nil && j.more:
			yield(FlaggedExtent{}, err)
		case j.more && j.last.Length > 0:
			yield(j.last, nil)
		}
	}
}

// A joiner joins neighbours that have the same flags.
type joiner struct {
	yield func(FlaggedExtent, error) bool
	last  FlaggedExtent
	more  bool // somebody wants more
}

func (j *joiner) add(e FlaggedExtent) {
	switch {
	case j.last.Length == 0:
		j.last = e
	case j.last.Flags == e.Flags:
		j.last.Length += e.Length
	default:
		j.more = j.yield(j.last, nil)
		j.last = e
	}
}

// walk adds the map of the window.
func (j *joiner) walk(ctx context.Context, h *service.Handle, win Window, dirty bool, flags func(s Said) uint8) error {
	layers := h.Device().Depth()
	for m, err := range h.Device().Walk(ctx, win.Offset, win.Length, block.WalkOptions{}) {
		if err != nil {
			return err
		}
		s := Said{
			Zero: m.Status.Has(storage.Zero), Hole: !m.Status.Has(storage.Alloc), Dirty: dirty,
			None: !m.Status.Has(storage.Local) && int(m.Depth) >= layers-1,
		}
		if j.add(FlaggedExtent{m.Offset, m.Length, flags(s)}); !j.more {
			return nil
		}
	}
	return nil
}

// maxRuns is how many runs of a bitmap are fetched at a time: nothing is held while
// what they say is sent.
const maxRuns = 1024

var errRuns = errors.New("enough")

// A run is a range of a bitmap.
type run struct {
	Window
	dirty bool
}

// walkDirty adds the map of each run of the bitmap.
func (j *joiner) walkDirty(ctx context.Context, h *service.Handle, win Window, bitmap string, flags func(s Said) uint8) error {
	runs := make([]run, 0, maxRuns)
	for end := win.Offset + win.Length; win.Length > 0; win.Length = end - win.Offset {
		runs = runs[:0]
		err := h.Dirty(ctx, bitmap, win.Offset, win.Length, func(off, n int64, dirty bool) error {
			if runs = append(runs, run{Window{off, n}, dirty}); len(runs) == cap(runs) {
				return errRuns
			}
			return nil
		})
		if err != nil && !errors.Is(err, errRuns) {
			return err
		}
		for _, r := range runs {
			if err := j.walk(ctx, h, r.Window, r.dirty, flags); err != nil || !j.more {
				return err
			}
			win.Offset = r.Offset + r.Length
		}
	}
	return nil
}
