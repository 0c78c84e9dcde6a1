package api

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/extentd/extentd/storage"
)

// A mark is what extents say beside their bits: a member that is true or false, and
// at which they are split.
type mark struct {
	member string // its name on the wire
	// walk calls visit for [off, off+n), in order and without gaps: as
	// storage.BitmapKeeper.Dirty and storage.Differ.Changes do.
	walk func(ctx context.Context, off, n int64, visit func(off, n int64, is bool) error) error
}

// dirtyMark is what the bitmap says that is asked for. What is written becomes dirty
// though the map may stay as it is, and a change of a bitmap is one of the data: the
// answer is good for as long as the data generation is.
func dirtyMark(ctx context.Context, from origin, p *GetExtentsParams) (*mark, error) {
	bitmap := *p.Dirty
	switch {
	case p.Since != nil:
		return nil, invalid("dirty", ruleConflict, "does not go with since")
	case valueOf(p.Volunteer):
		return nil, invalid("volunteer", ruleConflict, "does not go with dirty")
	}
	h, can := from.(dirtier)
	if !can {
		return nil, fmt.Errorf("%w: only an image has bitmaps", storage.ErrUnsupported)
	}
	if err := h.Dirty(ctx, bitmap, 0, 0, nil); err != nil {
		return nil, err
	}
	return &mark{
		member: "dirty",
		walk: func(ctx context.Context, off, n int64, visit func(off, n int64, dirty bool) error) error {
			return h.Dirty(ctx, bitmap, off, n, visit)
		},
	}, nil
}

// firstWindow is how much a mark is walked at first, bytes; each time it is twice as
// much. A page of a few extents does not walk what is far behind it, where all is
// alike.
const firstWindow = 1 << 30

// A marked is a part of a range for which a mark says one thing.
type marked struct {
	end int64
	is  bool
}

// errEnough ends a walk of which nobody wants more.
var errEnough = errors.New("enough")

// parts are what the mark says of [off, end). Neighbours may be alike.
func (k *mark) parts(ctx context.Context, off, end int64) iter.Seq2[marked, error] {
	return func(yield func(marked, error) bool) {
		for window := int64(firstWindow); off < end; window = min(2*window, storage.MaxSize) {
			n := min(window, end-off)
			err := k.walk(ctx, off, n, func(at, n int64, is bool) error {
				if !yield(marked{at + n, is}, nil) {
					return errEnough
				}
				return nil
			})
			if errors.Is(err, errEnough) {
				return
			}
			if err != nil {
				yield(marked{}, err)
				return
			}
			off += n
		}
	}
}

// A marker cuts the extents of a range where a mark changes. It holds one part at a
// time. stop must be called, by the goroutine that calls cut.
type marker struct {
	members [2]string // what follows in an extent, by what the mark says
	next    func() (marked, error, bool)
	stop    func()
	part    marked // the one that was cut along last
	ahead   marked // the one behind it, which says something else; end 0: not known
}

func newMarker(ctx context.Context, k *mark, off, end int64) *marker {
	next, stop := iter.Pull2(k.parts(ctx, off, end))
	return &marker{members: k.members(), next: next, stop: stop, part: marked{end: off}}
}

// members are what follows in an extent, by what the mark says.
func (k *mark) members() [2]string {
	return [2]string{fmt.Sprintf(`,%q:false}`, k.member), fmt.Sprintf(`,%q:true}`, k.member)}
}

// cut returns the first part of what is left of an extent for which the mark says
// one thing, and what it says, and takes it off.
func (k *marker) cut(m *storage.Mapping) (storage.Mapping, bool, error) {
	if m.Offset >= k.part.end {
		k.part, k.ahead = k.ahead, marked{}
	}
	for k.ahead.end == 0 && k.part.end < m.End() {
		p, err, more := k.next()
		switch {
		case err != nil:
			return storage.Mapping{}, false, err
		case !more:
			return storage.Mapping{}, false, fmt.Errorf("%w: nothing is said of %d", storage.ErrContract, k.part.end)
		case k.part.end <= m.Offset || p.is == k.part.is:
			k.part = p
		default:
			k.ahead = p
		}
	}
	first := *m
	if end := k.part.end; end < m.End() {
		first.Clip(m.Offset, end)
		m.Clip(end, m.End())
	} else {
		m.Length = 0
	}
	return first, k.part.is, nil
}

// appendTo adds what the mark says to the text of an extent.
func (k *marker) appendTo(text []byte, is bool) []byte {
	member := k.members[0]
	if is {
		member = k.members[1]
	}
	return append(text[:len(text)-1], member...)
}
