package transfer

import (
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"iter"
	"sync"

	"github.com/extentd/extentd/client"
)

const (
	remotePreferred = 4 << 20 // a request costs a way to the server and back
	remoteHole      = 64 << 10
	remotePage      = 4096    // extents
	remoteZero      = 1 << 30 // at a time, so that an answer does not take long
)

// A Remote is an image of a server as a source or a target. Safe for concurrent use.
type Remote struct {
	disk  *client.Disk
	image *client.Image
	loose bool // it may change

	streaming    Streaming
	since, dirty string // of changes
}

// NewRemote describes an image and is a source or target of its size. A source that
// is written to meanwhile fails, unless it may change.
func NewRemote(ctx context.Context, disk *client.Disk, mayChange bool) (*Remote, error) {
	image, err := disk.Describe(ctx)
	if err != nil {
		return nil, err
	}
	r := &Remote{disk: disk, image: image, loose: mayChange}
	if !mayChange {
		r.disk = disk.IfMatch(client.ETag(image.DataGeneration))
	}
	return r, nil
}

// Image is what the server said of it.
func (r *Remote) Image() *client.Image { return r.image }

// Size is the image's, bytes.
func (r *Remote) Size() int64 { return r.image.Size }

// Limits are made of the image's.
func (r *Remote) Limits() Limits {
	return Limits{
		Minimum:   r.image.Limits.Minimum,
		Preferred: max(remotePreferred, r.image.Limits.Preferred),
		Hole:      max(remoteHole, r.image.Limits.Minimum),
	}
}

// Extents asks for the map page by page: no connection waits for the copy.
func (r *Remote) Extents(ctx context.Context, off, n int64) iter.Seq2[Extent, error] {
	return func(yield func(Extent, error) bool) {
		for e, err := range r.disk.Extents(ctx, client.ExtentsOptions{Offset: off, Length: n, Page: remotePage, Changing: r.loose}) {
			if !yield(Extent{Offset: e.Offset, Length: e.Length, Zero: e.Zero}, changed(err)) || err != nil {
				return
			}
		}
	}
}

// Stream finds out whether the server hands out data in parts, and from then on has
// it do so.
func (r *Remote) Stream(ctx context.Context) error {
	_, err := r.disk.Parts(ctx, client.PartsOptions{Offset: r.Size()}, func(*client.Part) error { return nil })
	switch {
	case err == nil:
		r.streaming = OfData
	case !client.PartsUnknown(err):
		return changed(err)
	}
	return nil
}

// Changes makes it a source of what has changed since a snapshot, or of what a
// bitmap marks: for a target that has all the rest. It fails where there is no such
// thing.
func (r *Remote) Changes(ctx context.Context, since, dirty string) error {
	r.since, r.dirty, r.streaming = since, dirty, OfChanges
	_, err := r.disk.Parts(ctx, client.PartsOptions{Offset: r.Size(), Since: since, Dirty: dirty}, func(*client.Part) error { return nil })
	return changed(err)
}

// Streaming is what Stream or Changes have made it.
func (r *Remote) Streaming() Streaming { return r.streaming }

// Parts asks for them in one request.
func (r *Remote) Parts(ctx context.Context, off, n int64, visit func(e Extent, r io.Reader) error) error {
	opt := client.PartsOptions{Offset: off, Length: n, Since: r.since, Dirty: r.dirty, Changing: r.loose}
	_, err := r.disk.Parts(ctx, opt, func(p *client.Part) error {
		return visit(Extent{Offset: p.Offset, Length: p.Length, Zero: p.Zero}, p)
	})
	return changed(err)
}

// Sum has the server compute the checksum of the first n bytes.
func (r *Remote) Sum(ctx context.Context, n int64) (string, error) {
	if n == 0 {
		return NewSum().String(), nil
	}
	sum, err := r.disk.Checksum(ctx, client.ChecksumOptions{Length: n, Changing: r.loose})
	if err != nil {
		return "", changed(err)
	}
	return SumName + hex.EncodeToString(sum[:]), nil
}

// ReadAt reads on condition that nobody has written.
func (r *Remote) ReadAt(ctx context.Context, p []byte, off int64) error {
	_, err := r.disk.ReadAt(ctx, p, off)
	return changed(err)
}

// Unchanged asks whether somebody has written.
func (r *Remote) Unchanged(ctx context.Context) error {
	if r.loose {
		return nil
	}
	return changed(r.disk.Check(ctx))
}

// changed says what a condition that does not hold means.
func changed(err error) error {
	if client.Kind(err) == "precondition-failed" {
		return fmt.Errorf("%w while it was copied: %w", ErrChanged, err)
	}
	return err
}

// Target is the image to be written to.
func (r *Remote) Target() *RemoteTarget { return &RemoteTarget{r: r, disk: r.disk.IfMatch("")} }

// A RemoteTarget is an image of a server that is written to. Safe for concurrent use.
type RemoteTarget struct {
	r    *Remote
	disk *client.Disk

	mu    sync.Mutex // protects what follows; not held while anything is asked
	dirty bool       // something was written since the last flush began
	mark  int64      // how many connections had been lost by then
}

// Size is the image's, bytes.
func (t *RemoteTarget) Size() int64 { return t.r.Size() }

// Limits are made of the image's.
func (t *RemoteTarget) Limits() Limits { return t.r.Limits() }

// ReadAt reads what is there now.
func (t *RemoteTarget) ReadAt(ctx context.Context, p []byte, off int64) error {
	_, err := t.disk.ReadAt(ctx, p, off)
	return err
}

// WriteAt sends p.
func (t *RemoteTarget) WriteAt(ctx context.Context, p []byte, off int64) error {
	t.touch()
	_, err := t.disk.WriteAt(ctx, p, off)
	return err
}

// Zero has the server do it.
func (t *RemoteTarget) Zero(ctx context.Context, off, n int64) error {
	t.touch()
	for n > 0 {
		part := min(n, remoteZero)
		if err := t.disk.Zero(ctx, off, part, false); err != nil {
			return err
		}
		off, n = off+part, n-part
	}
	return nil
}

// touch notes which losses are not of what is written now.
func (t *RemoteTarget) touch() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.dirty {
		t.dirty, t.mark = true, t.disk.Server().Losses()
	}
}

// Flush fails with ErrLost if a connection was lost since the first write after the
// last one: the server may be another process by now, which never saw that write.
func (t *RemoteTarget) Flush(ctx context.Context) error {
	t.mu.Lock()
	dirty, mark := t.dirty, t.mark
	t.dirty = false
	t.mu.Unlock()
	if err := t.disk.Flush(ctx); err != nil {
		t.mu.Lock()
		if dirty {
			t.dirty, t.mark = true, mark
		}
		t.mu.Unlock()
		return err
	}
	if dirty && t.disk.Server().Losses() != mark {
		return fmt.Errorf("image %s: flush: %w: a connection to the server was lost", t.disk.Name(), ErrLost)
	}
	return nil
}

var (
	_ Streamer = (*Remote)(nil)
	_ Target   = (*RemoteTarget)(nil)
)
