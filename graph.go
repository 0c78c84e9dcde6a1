package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage"
)

// An imageConfig is an entry of images in a configuration file: a graph under a
// name. Its json tags, and those of the options below, are the keys.
type imageConfig struct {
	Name     string         `json:"name" validate:"required,image_name"`
	Format   string         `json:"format" validate:"omitempty,oneof=qcow2 raw"`
	Node     nodeConfig     `json:"node"`
	Filters  []filterConfig `json:"filters"`
	Backing  string         `json:"backing" validate:"omitempty,image_name"`
	ReadOnly bool           `json:"readonly"`
}

// A nodeConfig is {KIND: {...}}: a protocol node.
type nodeConfig struct {
	kind    string
	options nodeOptions
}

// A filterConfig likewise is a filter.
type filterConfig struct {
	kind    string
	options filterOptions
}

// nodeOptions are those of one kind of protocol node.
type nodeOptions interface {
	node(w wiring) service.GraphNode
}

// filterOptions are those of one kind of filter.
type filterOptions interface {
	filter(w wiring) service.GraphFilter
}

// A wiring is what graphs get from the program that they are part of.
type wiring struct {
	log   *slog.Logger
	check bool // verify every answer of every node
	// scratch opens the scratch file of a kind of filter, "" for one without a
	// name.
	scratch func(ctx context.Context, kind string, path hostPath) (storage.File, error)
}

// decodeImages reads what stands under images in the configuration file at path.
func decodeImages(path string, in any) ([]imageConfig, error) {
	base, err := filepath.Abs(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	d := decoder{base: base}
	var images []imageConfig
	if d.decode("images", in, &images); len(d.problems) == 0 {
		d.problems = checkImages(images)
	}
	return images, errors.Join(d.problems...)
}

func (n *nodeConfig) decode(d *decoder, path string, in any) {
	n.kind, n.options = decodeKind(d, path, in, nodeKinds())
}

func (f *filterConfig) decode(d *decoder, path string, in any) {
	f.kind, f.options = decodeKind(d, path, in, filterKinds())
}

// decodeKind reads {KIND: {...}}, of which the options may be left out.
func decodeKind[T any](d *decoder, path string, in any, kinds map[string]func() T) (kind string, options T) {
	allowed := strings.Join(slices.Sorted(maps.Keys(kinds)), ", ")
	entry, ok := d.members(path, in, reflect.ValueOf(kinds))
	if !ok {
		return "", options
	}
	given := slices.Sorted(maps.Keys(entry))
	for _, key := range given {
		if kinds[key] == nil {
			d.problems.add(joinAny(path, key), "is an unknown kind, must be one of %s", allowed)
			return "", options
		}
	}
	if len(given) != 1 {
		d.problems.add(path, "has %d kinds%s, must have one of %s", len(given), listed(given), allowed)
		return "", options
	}
	kind = given[0]
	options = kinds[kind]()
	if entry[kind] != nil {
		d.decode(join(path, kind), entry[kind], options)
	}
	return kind, options
}

func listed(keys []string) string {
	if len(keys) == 0 {
		return ""
	}
	return " (" + strings.Join(keys, ", ") + ")"
}

// spec is the image as the service knows it.
func (i *imageConfig) spec(w wiring) (service.ImageSpec, error) {
	node := i.Node.options.node(w)
	node.Kind = i.Node.kind
	if open := node.Open; open != nil {
		node.Open = func(ctx context.Context) (storage.File, error) {
			f, err := open(ctx)
			return f, unfit(err)
		}
	}
	node.Name = cmp.Or(node.Name, node.Kind)
	graph := &service.Graph{Node: node}
	var err error
	if graph.Node.Options, err = canonical(i.Node.options); err != nil {
		return service.ImageSpec{}, fmt.Errorf("image %s: %w", i.Name, err)
	}
	for _, f := range i.Filters {
		filter := f.options.filter(w)
		filter.Kind = f.kind
		open := filter.Open
		filter.Open = func(ctx context.Context, next *storage.Node) (storage.File, error) {
			f, err := open(ctx, next)
			return f, unfit(err)
		}
		if filter.Options, err = canonical(f.options); err != nil {
			return service.ImageSpec{}, fmt.Errorf("image %s: %w", i.Name, err)
		}
		graph.Filters = append(graph.Filters, filter)
	}
	return service.ImageSpec{Name: i.Name, Format: i.format(), Backing: i.Backing, ReadOnly: i.ReadOnly, Graph: graph}, nil
}

// unfit is what an error means of opening a node. That an option does not fit what
// is below, such as a window that is larger, is no fault of the request that opens
// the image.
func unfit(err error) error {
	if errors.Is(err, storage.ErrInvalid) {
		return fmt.Errorf("%w: the configuration does not fit: %s", storage.ErrUnsupported, err.Error())
	}
	return err
}

// format is the one that is given, or that the extension of the node's file
// tells, or "".
func (i *imageConfig) format() string {
	if f, is := i.Node.options.(*fileNode); is && i.Format == "" {
		return service.FormatOf(string(f.Path), formats())
	}
	return i.Format
}

// canonical writes options down in one way. It holds no secrets.
func canonical(options any) (string, error) {
	text, err := json.Marshal(options)
	return string(text), err
}
