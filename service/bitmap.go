package service

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/extentd/extentd/storage"
)

// Bitmaps are the persistent dirty bitmaps of the image, in the order of their
// creation, with what is dirty in each, as far as that does not take long to find
// out. The error wraps storage.ErrUnsupported where the format has none.
func (h *Handle) Bitmaps(ctx context.Context) ([]storage.BitmapInfo, error) {
	k, err := h.keeper()
	if err != nil {
		return nil, err
	}
	all, err := k.Bitmaps(ctx)
	if err != nil {
		return nil, h.named(err)
	}
	return all, nil
}

// BitmapDirectory is Bitmaps without reading any of them: what is dirty is told of
// those that are in memory.
func (h *Handle) BitmapDirectory(ctx context.Context) ([]storage.BitmapInfo, error) {
	d, can := h.chain.layers[0].Mapper.(interface {
		BitmapDirectory(ctx context.Context) ([]storage.BitmapInfo, error)
	})
	if !can {
		return h.Bitmaps(ctx)
	}
	all, err := d.BitmapDirectory(ctx)
	if err != nil {
		return nil, h.named(err)
	}
	return all, nil
}

// Bitmap is one bitmap of the image. Where there are two of the name, only one of
// them can be consistent, and it is that one. The error wraps storage.ErrNotFound
// where there is none.
func (h *Handle) Bitmap(ctx context.Context, name string) (storage.BitmapInfo, error) {
	all, err := h.BitmapDirectory(ctx)
	if err != nil {
		return storage.BitmapInfo{}, err
	}
	n := findBitmap(all, name)
	if n < 0 {
		return storage.BitmapInfo{}, h.named(noBitmap(name))
	}
	b := all[n]
	if b.Inconsistent || b.Dirty >= 0 {
		return b, nil
	}
	b.Dirty = 0
	err = h.Dirty(ctx, name, 0, h.device.Size(), func(_, n int64, dirty bool) error {
		if dirty {
			b.Dirty += n
		}
		return nil
	})
	if errors.Is(err, storage.ErrOutOfRange) { // it was resized just now
		b.Dirty, err = -1, nil
	}
	return b, err
}

// Dirty calls visit for [off, off+n) of the image, in order, without gaps, and each
// time with another answer: whether the bitmap marks the piece. What is written
// meanwhile may be seen or not. The error wraps storage.ErrNotFound where there is no
// such bitmap, storage.ErrConflict where it is inconsistent, storage.ErrUnsupported
// where the format has none; an error of visit ends it, and is returned. With a
// length of 0 it says whether there is such a bitmap to be read.
func (h *Handle) Dirty(ctx context.Context, bitmap string, off, n int64, visit func(off, n int64, dirty bool) error) error {
	k, err := h.keeper()
	if err != nil {
		return err
	}
	return h.named(k.Dirty(ctx, bitmap, off, n, visit))
}

// keeper is the top layer as one that has bitmaps.
func (h *Handle) keeper() (storage.BitmapKeeper, error) {
	top := &h.chain.layers[0]
	k, can := top.Mapper.(storage.BitmapKeeper)
	if !can {
		return nil, h.named(fmt.Errorf("%w: bitmaps of the format %s", storage.ErrUnsupported, top.format))
	}
	return k, nil
}

// named is err with the image's name.
func (h *Handle) named(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("image %q: %w", h.name, err)
}

// findBitmap is the index of a bitmap, rather of one that is consistent; -1 for none.
func findBitmap(all []storage.BitmapInfo, name string) int {
	found := -1
	for n := range all {
		if all[n].Name == name && (found < 0 || all[found].Inconsistent) {
			found = n
		}
	}
	return found
}

func noBitmap(name string) error { return fmt.Errorf("bitmap %q: %w", name, storage.ErrNotFound) }

// maxBitmapName is how long the name of a bitmap may be, bytes.
const maxBitmapName = 1023

// checkBitmapName refuses names that cannot be a segment of a path, for new bitmaps.
// Those that others have made can be reached all the same: percent-encoded.
func checkBitmapName(name string) error {
	if name == "" || len(name) > maxBitmapName || !utf8.ValidString(name) || strings.ContainsAny(name, "\x00/") || name == "." || name == ".." {
		return &storage.InvalidError{Field: "name", Detail: fmt.Sprintf("must be 1 to %d bytes of UTF-8, without NUL and /, and neither . nor ..", maxBitmapName)}
	}
	return nil
}
