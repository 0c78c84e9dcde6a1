package service

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"

	"github.com/extentd/extentd/storage"
)

// maxListed is how many images all listings together hold open at a time,
// beside those that are open anyway.
const maxListed = 4

// maxWeight is how much of snapshots and bitmaps a page may hold, bytes; after
// the image that goes over it, the page ends early.
const maxWeight = 1 << 20

// ErrCursor: a cursor that no page came with.
var ErrCursor = errors.New("invalid cursor")

// A Page is a part of the list of images, in the order of their names.
type Page struct {
	Entries []Entry
	Next    string // where the next page begins; "" at the end
}

// An Entry is an image of a listing.
type Entry struct {
	Name   string
	Format string
	Info   *Info // nil if the image cannot be opened
	Err    error // why
}

// List returns the first images after the cursor, "" being the beginning, limit
// at most. Only those whose names are visible are there; nil: all are.
// An image that cannot be opened is an entry with an error. Images are opened
// one at a time, and not kept open.
func (s *Service) List(ctx context.Context, cursor string, limit int, visible func(name string) bool) (Page, error) {
	after, err := base64.RawURLEncoding.DecodeString(cursor)
	if err != nil || cursor != "" && !ValidName(string(after)) {
		return Page{}, ErrCursor
	}
	if limit < 1 {
		return Page{}, fmt.Errorf("%w: limit %d", storage.ErrOutOfRange, limit)
	}
	names, err := s.names(ctx, string(after), limit+1, visible)
	if err != nil {
		return Page{}, err
	}
	var page Page
	if len(names) > limit {
		names = names[:limit]
		page.Next = cursorAfter(names[limit-1])
	}
	weight := 0
	for i, name := range names {
		e := s.entry(ctx, name)
		if err := ctx.Err(); err != nil {
			return Page{}, err
		}
		if _, explicit := s.images[name]; !explicit && errors.Is(e.Err, storage.ErrNotFound) {
			continue // removed since
		}
		page.Entries = append(page.Entries, e)
		if weight += e.weight(); weight > maxWeight && i < len(names)-1 {
			page.Next = cursorAfter(name)
			break
		}
	}
	return page, nil
}

func cursorAfter(name string) string { return base64.RawURLEncoding.EncodeToString([]byte(name)) }

// weight is about how many bytes an entry takes that an image may make many.
func (e *Entry) weight() int {
	if e.Info == nil || e.Info.QCOW2 == nil {
		return 0
	}
	const each = 128
	n := 0
	for i := range e.Info.QCOW2.Snapshots {
		n += each + len(e.Info.QCOW2.Snapshots[i].Name)
	}
	for i := range e.Info.QCOW2.Bitmaps {
		n += each + len(e.Info.QCOW2.Bitmaps[i].Name)
	}
	return n
}

// names are the first most visible names of images after the one given, sorted.
func (s *Service) names(ctx context.Context, after string, most int, visible func(name string) bool) ([]string, error) {
	var names []string
	add := func(name string) {
		if name <= after || visible != nil && !visible(name) {
			return
		}
		names = append(names, name)
		if len(names) >= 2*most+1024 { // memory does not grow with the directory
			slices.Sort(names)
			names = slices.Compact(names)
			names = names[:min(most, len(names))]
		}
	}
	for name := range s.images {
		add(name)
	}
	if s.opt.Dir != "" {
		// Whatever is called like an image is listed, a FIFO too: its entry
		// says what is wrong. So none of the names is wanted from the directory.
		_, err := s.roots[0].dir.Names(ctx, func(name string) bool {
			if ValidName(name) && FormatOf(name, s.opt.Formats) != "" {
				add(name)
			}
			return false
		})
		if err != nil {
			return nil, err
		}
	}
	slices.Sort(names)
	names = slices.Compact(names)
	return names[:min(most, len(names))], nil
}

// entry describes one image, through its open handle if there is one.
func (s *Service) entry(ctx context.Context, name string) Entry {
	e := Entry{Name: name}
	src, err := s.find(name)
	if err != nil {
		e.Err = err
		return e
	}
	e.Format = src.format
	h, err := s.glance(ctx, name)
	if err != nil {
		e.Err = err
		return e
	}
	defer h.Release()
	info, err := h.Info(ctx)
	if err != nil {
		e.Err = err
		return e
	}
	e.Info = &info
	return e
}

// glance returns a handle that is current, and that only its caller holds
// unless it was open before.
func (s *Service) glance(ctx context.Context, name string) (*Handle, error) {
	if h := s.share(name); h != nil {
		if h.current() {
			return h, nil
		}
		h.Release()
	}
	select {
	case s.listed <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	h, err := s.openImage(ctx, name)
	if err != nil {
		<-s.listed
		return nil, err
	}
	h.refs.Store(1)
	h.tokens = s.listed
	return h, nil
}
