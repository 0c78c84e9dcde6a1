package service

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/filter"
)

// kindFile is the kind of a file as a node.
const kindFile = "file"

// A Graph says what an image stands on: a protocol node, and filters over it. A
// plain file is a graph of one node.
type Graph struct {
	Node    GraphNode
	Filters []GraphFilter // from the node upwards
}

// A GraphNode is where bytes are.
type GraphNode struct {
	// Kind is "file", "http", "null", "mem", ...
	Kind string
	// Name is what the node is called in mappings and errors. Default: what
	// Path ends with, or Kind.
	Name string
	// Path is the host path of a file, which the service opens, and shares
	// between all images that have a use for it. "" for all else.
	Path string
	// Direct, of a file: past the page cache. Default: false.
	Direct bool
	// Open opens what is no file; ctx is of the opening alone, and its end does
	// not end what was opened. That may have a Validator() string,
	// which changes whenever its content does; "" says that nobody can tell.
	// Without one the content must follow from Options, or Keep be set.
	Open func(ctx context.Context) (storage.File, error)
	// ReadOnly: it cannot be written to.
	ReadOnly bool
	// Keep: it has a state that ends when it is closed, and so it is not closed
	// when it is idle. That of what is no file is what it holds: it is never
	// opened anew.
	Keep bool
	// Options are its configuration in a canonical form: a part of the image's
	// generation.
	Options string
}

// A GraphFilter is a node over a node.
type GraphFilter struct {
	Kind string
	// Open opens the filter, which then owns next. On an error next stays the
	// caller's; ctx is of the opening alone. It may be opened a second time
	// before the first is closed: where next has changed underneath, and to look
	// which names an image stores, then without any that is Keep or Overlay.
	Open func(ctx context.Context, next *storage.Node) (storage.File, error)
	// ReadOnly: nothing is written through it.
	ReadOnly bool
	// Overlay: what is written to it does not reach the node below, and until
	// then it reads as that does. With Keep it is never opened anew.
	Overlay bool
	// Keep: as a node's. It reads as the node below does.
	Keep    bool
	Options string
}

// NodeInfo describes one node of an open graph.
type NodeInfo struct {
	Kind     string
	Name     string
	Limits   storage.Limits   // that it advertises
	Counters []filter.Counter // since it was opened; nil if it counts nothing
}

// check fills in the node's kind and name, and reports what cannot be.
func (g *Graph) check() error {
	if g.Node.Kind == "" && g.Node.Path != "" {
		g.Node.Kind = kindFile
	}
	if g.Node.Name == "" {
		g.Node.Name = g.Node.Kind
		if g.Node.Path != "" {
			g.Node.Name = filepath.Base(g.Node.Path)
		}
	}
	if (g.Node.Path == "") == (g.Node.Open == nil) {
		return fmt.Errorf("node %s: it is opened by a path, or else by a function", g.Node.Kind)
	}
	for i := range g.Filters {
		if g.Filters[i].Open == nil {
			return fmt.Errorf("filter %s: nothing opens it", g.Filters[i].Kind)
		}
	}
	return nil
}

// plain reports whether the graph is no more than a file.
func (g *Graph) plain() bool {
	return g.Node.Path != "" && !g.Node.Direct && !g.Node.Keep && len(g.Filters) == 0
}

// keeps reports whether the graph is not closed when it is idle.
func (g *Graph) keeps() bool {
	for i := range g.Filters {
		if g.Filters[i].Keep {
			return true
		}
	}
	return g.Node.Keep
}

// holds reports whether what the graph reads as is its own, so that opening it
// anew would show something else.
func (g *Graph) holds() bool { return g.Node.Keep && g.Node.Path == "" || !g.through() }

// precious reports whether the graph is never opened anew.
func (g *Graph) precious() bool { return g.keeps() && g.holds() }

// through reports whether what is written to the graph reaches its node.
func (g *Graph) through() bool {
	for i := range g.Filters {
		if g.Filters[i].Overlay {
			return false
		}
	}
	return true
}

// readOnly reports whether something on the way of writes takes none.
func (g *Graph) readOnly() bool {
	for i := len(g.Filters) - 1; i >= 0; i-- {
		switch f := &g.Filters[i]; {
		case f.ReadOnly:
			return true
		case f.Overlay:
			return false
		}
	}
	return g.Node.ReadOnly
}
