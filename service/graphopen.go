package service

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/file"
	"github.com/extentd/extentd/storage/filter"
)

// An openNode is one node of an open graph.
type openNode struct {
	*storage.Node
	kind string
}

// An openGraph is a graph that is open, with its file, if it has one.
type openGraph struct {
	*Graph
	nodes  []openNode // from the node upwards
	tally  *tally
	file   *sharedFile // nil: its node is none
	random bool        // nothing but epoch tells what it reads as
	epoch  string      // random
	valid  string      // what the node's validator said
	writes atomic.Uint64
	stale  atomic.Bool // it must be opened anew, unless it is precious

	identity file.Identity // of file, as far as we know; guarded by fileTable.mu
}

// openGraph opens an image's graph from its node upwards. What an error leaves
// open it closes.
func (s *Service) openGraph(ctx context.Context, src *source) (*openGraph, error) {
	g := &openGraph{Graph: src.graph, tally: &s.tally, random: src.graph.holds(), epoch: strings.ToLower(rand.Text())}
	node, err := s.openBottom(ctx, src, g)
	if err != nil {
		return nil, err
	}
	g.nodes = []openNode{{node, g.Node.Kind}}
	for i := range g.Filters {
		if err := g.add(ctx, &g.Filters[i], s.opt.Check); err != nil {
			return nil, errors.Join(err, g.close(&s.files))
		}
	}
	if g.nodes, err = s.unaligned(ctx, src.format, g.nodes); err != nil {
		return nil, errors.Join(err, g.close(&s.files))
	}
	s.tally.enterGraph(g)
	return g, nil
}

// openBottom opens the node that the graph stands on.
func (s *Service) openBottom(ctx context.Context, src *source, g *openGraph) (*storage.Node, error) {
	var f storage.File
	if src.path == "" {
		opened, err := g.Node.Open(ctx)
		if err != nil {
			return nil, missing(g.Node.Name, err)
		}
		if v, ok := opened.(interface{ Validator() string }); ok {
			g.valid = v.Validator()
			g.random = g.random || g.valid == ""
		}
		seen := &watched{File: opened, stale: &g.stale}
		if w, writes := opened.(storage.Writer); writes {
			f = watchedWriter{seen, w}
		} else {
			f = seen
		}
	} else {
		shared, err := s.files.get(ctx, src.bottom(), true)
		if err != nil {
			return nil, unavailable(err)
		}
		if g.identity, err = settled(ctx, shared.file); err != nil {
			return nil, errors.Join(err, s.files.put(shared, true))
		}
		g.file, f = shared, borrowed{shared.file}
	}
	node, err := s.bottom(g.Node.Name, f)
	if err != nil {
		err = errors.Join(err, f.Close())
		if g.file != nil {
			err = errors.Join(err, s.files.put(g.file, true))
		}
	}
	return node, err
}

// missing is what an error means of opening a node that is no file: the image is
// there, even if the node is not.
func missing(name string, err error) error {
	if errors.Is(err, storage.ErrNotFound) {
		return fmt.Errorf("%w: %s: %s", storage.ErrBackingUnavailable, name, err.Error())
	}
	return fmt.Errorf("%s: %w", name, err)
}

// add opens a filter on top.
func (g *openGraph) add(ctx context.Context, f *GraphFilter, check bool) error {
	next := g.top()
	opened, err := f.Open(ctx, next)
	if err != nil {
		return missing(filterName(f.Kind, next), err)
	}
	g.nodes = append(g.nodes, newFilterNode(f.Kind, opened, next, check))
	return nil
}

func filterName(kind string, next *storage.Node) string { return kind + "(" + next.Name() + ")" }

func newFilterNode(kind string, f storage.File, next *storage.Node, check bool) openNode {
	return openNode{storage.NewNode(filterName(kind, next), f, storage.NodeOptions{Check: check}), kind}
}

func (g *openGraph) top() *storage.Node { return g.nodes[len(g.nodes)-1].Node }

// close closes the top, which closes what it stands on, and the file last.
func (g *openGraph) close(t *fileTable) error {
	err := g.top().Close()
	g.tally.leaveGraph(g)
	if g.file != nil {
		err = errors.Join(err, t.put(g.file, true))
	}
	return err
}

// outdated reports whether the graph must be opened anew: id is what its file's
// name leads to now. fileTable.mu must be held.
func (g *openGraph) outdated(id file.Identity) bool {
	return !g.precious() && (g.stale.Load() || g.file != nil && id != g.identity)
}

// kindBlocksize is the kind of the filter that the service puts on top itself.
const kindBlocksize = "blocksize"

// unaligned puts on top of nodes what the format needs to ask for any offset and
// length, unless it can do so anyway.
func (s *Service) unaligned(ctx context.Context, format string, nodes []openNode) ([]openNode, error) {
	top := nodes[len(nodes)-1].Node
	if !s.opt.Formats[format].Unaligned {
		return nodes, nil
	}
	limits, err := top.Limits(ctx)
	if err != nil {
		return nodes, err
	}
	most, err := storage.Limits{}.Complete()
	if err != nil {
		return nodes, err
	}
	switch {
	case limits.Minimum == 1 && limits.MaxData == most.MaxData && limits.MaxTrim == most.MaxTrim && limits.MaxZero == most.MaxZero:
		return nodes, nil
	case s.opt.Blocksize == nil && limits.Minimum == 1: // the driver splits
		return nodes, nil
	case s.opt.Blocksize == nil:
		return nodes, fmt.Errorf("%s: %w: images of format %s on a node with a minimum of %d bytes", top.Name(), storage.ErrUnsupported, format, limits.Minimum)
	}
	f, err := s.opt.Blocksize(ctx, top)
	if err != nil {
		return nodes, missing(filterName(kindBlocksize, top), err)
	}
	return append(nodes, newFilterNode(kindBlocksize, f, top, s.opt.Check)), nil
}

// A borrowed file is not its graph's to close.
type borrowed struct{ *file.File }

func (borrowed) Close() error { return nil }

// A watched file tells when reading it shows that it is no longer what was opened.
type watched struct {
	storage.File
	stale *atomic.Bool
}

// learn is what an error means to who has opened the file: one that is gone is no
// longer what it was, and no answer about the image.
func (w *watched) learn(err error) error {
	if errors.Is(err, storage.ErrNotFound) {
		err = fmt.Errorf("%w: %s", storage.ErrChanged, err.Error())
	}
	if errors.Is(err, storage.ErrChanged) {
		w.stale.Store(true)
	}
	return err
}

func (w *watched) Size(ctx context.Context) (int64, error) {
	size, err := w.File.Size(ctx)
	return size, w.learn(err)
}

func (w *watched) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	n, err := w.File.ReadAt(ctx, p, off)
	return n, w.learn(err)
}

func (w *watched) Extents(ctx context.Context, off, n int64, into *storage.ExtentList) error {
	return w.learn(w.File.Extents(ctx, off, n, into))
}

func (w *watched) Limit(ctx context.Context, which storage.Limit) (int64, error) {
	v, err := w.File.Limit(ctx, which)
	return v, w.learn(err)
}

// Advertise is the file's, or else what binds.
func (w *watched) Advertise(ctx context.Context, which storage.Limit) (int64, error) {
	if a, ok := w.File.(storage.Advertiser); ok {
		v, err := a.Advertise(ctx, which)
		return v, w.learn(err)
	}
	return w.Limit(ctx, which)
}

// Allocated is the file's, or else its size.
func (w *watched) Allocated(ctx context.Context) (int64, error) {
	if sparse, ok := w.File.(storage.Sparse); ok {
		n, err := sparse.Allocated(ctx)
		return n, w.learn(err)
	}
	return w.Size(ctx)
}

// Counters are the file's, if it counts.
func (w *watched) Counters() []filter.Counter {
	if c, counts := w.File.(filter.Counting); counts {
		return c.Counters()
	}
	return nil
}

// A watchedWriter can be written to. What writing shows, [Handle.Report] is told.
type watchedWriter struct {
	*watched
	storage.Writer
}

// StartWriting is the file's, if it must be made ready.
func (w watchedWriter) StartWriting(ctx context.Context) error {
	if f, must := w.File.(storage.Starter); must {
		return f.StartWriting(ctx)
	}
	return ctx.Err()
}
