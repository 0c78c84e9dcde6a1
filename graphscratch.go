package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/file"
	"github.com/extentd/extentd/storage/filter/cache"
	"github.com/extentd/extentd/storage/filter/cow"
)

// scratchMagic begins what stands at the beginning of scratch files, so that no
// other file is taken for one.
const scratchMagic = "extentd scratch file: "

// A scratcher is a filter that writes over a file, "" for one without a name.
type scratcher interface {
	scratch() hostPath
}

// overScratch is how a filter is opened that has a scratch file, which is its own
// once it is open.
func overScratch[F storage.File](w wiring, kind string, path hostPath, open func(ctx context.Context, next, scratch *storage.Node) (F, error)) service.GraphFilter {
	return service.GraphFilter{Keep: true, Open: func(ctx context.Context, next *storage.Node) (storage.File, error) {
		f, err := w.scratch(ctx, kind, path)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", kind, err)
		}
		scratch := storage.NewNode("file of "+kind, f, storage.NodeOptions{Check: w.check})
		over, err := open(ctx, next, scratch)
		if err != nil {
			return nil, errors.Join(err, scratch.Close())
		}
		return over, nil
	}}
}

type cacheFilter struct {
	Path      hostPath  `json:"path,omitempty" validate:"required"`
	Size      *byteSize `json:"size,omitempty" validate:"required"`
	BlockSize *byteSize `json:"block_size,omitempty" validate:"omitempty,power_of_two,min=4096,max=16777216"`
}

func (f *cacheFilter) scratch() hostPath { return f.Path }

func (f *cacheFilter) filter(w wiring) service.GraphFilter {
	return overScratch(w, "cache", f.Path, func(ctx context.Context, next, scratch *storage.Node) (*cache.Filter, error) {
		return cache.New(ctx, next, cache.Options{File: scratch, Size: int64(*f.Size), BlockSize: int64(given(f.BlockSize))})
	})
}

type cowFilter struct {
	Path hostPath `json:"path,omitempty"`
}

func (f *cowFilter) scratch() hostPath { return f.Path }

func (f *cowFilter) filter(w wiring) service.GraphFilter {
	over := overScratch(w, "cow", f.Path, func(ctx context.Context, next, scratch *storage.Node) (*cow.Filter, error) {
		return cow.New(ctx, next, cow.Options{File: scratch})
	})
	over.Overlay = true
	return over
}

// openScratch opens the scratch file of a filter, a nameless one without path.
func openScratch(ctx context.Context, kind string, path hostPath) (storage.File, error) {
	if path == "" {
		return tempScratch(ctx, kind, path)
	}
	f, err := file.OpenScratch(ctx, string(path), scratchMagic+kind)
	if err != nil {
		return nil, err
	}
	return f, nil
}

// tempScratch makes a nameless one whatever the path is.
func tempScratch(ctx context.Context, kind string, _ hostPath) (storage.File, error) {
	f, err := file.TempScratch(ctx, "", scratchMagic+kind)
	if err != nil {
		return nil, err
	}
	return f, nil
}
