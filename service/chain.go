package service

import (
	"context"
	"errors"
	"fmt"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/block"
)

// maxLayers is the longest chain that is opened.
const maxLayers = 64

// A chain is an image being opened, the top layer first. Who fails closes it.
type chain struct {
	s      *Service
	bases  []*base // of all layers; the first is the top layer's own
	layers []openLayer
	caches int64 // what it has of the budget, bytes
}

// An openLayer is one layer of an open image.
type openLayer struct {
	Layer
	source
	base *base
	node *storage.Node // the base's
	data *base         // nil: no external data file
}

// open opens all layers.
func (c *chain) open(ctx context.Context, name string, top source) (*image, error) {
	what := fmt.Sprintf("image %q", name)
	for found := []source{top}; len(found) > 0; {
		if len(c.layers) >= maxLayers {
			return nil, fmt.Errorf("%s: %w: more than %d layers", what, storage.ErrBackingUnavailable, maxLayers)
		}
		err := c.addLayer(ctx, found)
		if err != nil && len(c.layers) > 0 {
			err = unavailable(err)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", what, err)
		}
		if what, found, err = c.below(); err != nil {
			return nil, fmt.Errorf("%s: %w", what, unavailable(err))
		}
	}
	i := &image{s: c.s, chain: *c, turn: make(chan struct{}, 1), snapshots: openSnapshots{turn: make(chan struct{}, 1)}}
	if l, ok := c.layers[0].Mapper.(failer); ok {
		i.failed = l.Failed
	}
	i.counts.start(c.s.generations(c.s.keyOf(&top, c.bases[0].identity), c))
	var err error
	if i.device, err = i.chain.device(i.counts.changing); err != nil {
		return nil, fmt.Errorf("image %q: %w", name, err)
	}
	c.caches = i.chain.caches
	c.s.tally.enter(i)
	return i, nil
}

// addLayer opens the layer in the first of the files that can be opened.
func (c *chain) addLayer(ctx context.Context, found []source) error {
	b, err := c.addFirst(ctx, found)
	if err != nil {
		return err
	}
	l := openLayer{source: b.source, base: b, node: b.node()}
	granted := c.s.caches.take(leastMetadata, mostMetadata)
	c.caches += granted
	l.Layer, err = c.s.opt.Formats[l.format].Open(ctx, l.node, DriverOptions{
		Backed:    l.spec != nil && l.spec.Backing != "",
		CacheSize: granted,
		OpenData: func(ctx context.Context, name string) (*storage.Node, error) {
			data, err := c.addData(ctx, &l.source, name)
			if err != nil {
				return nil, err
			}
			l.data = data
			return data.node(), nil
		},
	})
	if err != nil {
		return err
	}
	c.layers = append(c.layers, l)
	c.trim(granted, &l.Layer)
	if spec := l.spec; spec != nil && spec.DataFile != "" && l.data == nil {
		return fmt.Errorf("%w: there is no external data file to bind", storage.ErrUnsupported)
	}
	return nil
}

// below finds what backs the last layer: nothing, or the files that the name
// may mean. The text says what it is, for errors.
func (c *chain) below() (string, []source, error) {
	last := &c.layers[len(c.layers)-1]
	if c.s.opt.TopOnly {
		return "", nil, nil
	}
	if last.spec != nil && last.spec.Backing != "" {
		what := fmt.Sprintf("backing image %q", last.spec.Backing)
		bound, err := c.s.find(last.spec.Backing)
		return what, []source{bound}, err
	}
	if last.Backing == "" {
		return "", nil, nil
	}
	what := fmt.Sprintf("backing file %q", last.Backing)
	if last.host == "" {
		return what, nil, unnamed(&last.source)
	}
	format := last.BackingFormat
	if format == "" {
		format = FormatOf(last.Backing, c.s.opt.Formats)
	}
	found, err := c.s.follow(&last.source, last.Backing, format)
	if err != nil {
		return what, nil, err
	}
	if _, known := c.s.opt.Formats[format]; !known {
		return what, nil, fmt.Errorf("%w: format %q", storage.ErrUnsupported, format)
	}
	return what, found, nil
}

// trim gives back what the layer's tables can not fill.
func (c *chain) trim(granted int64, l *Layer) {
	const entry = 16 // bytes for a cluster, at most
	need := int64(0)
	if l.ClusterSize > 0 {
		need = (l.Mapper.Size()/l.ClusterSize + 1) * entry
	}
	if excess := granted - need; excess > 0 {
		c.caches -= excess
		c.s.caches.put(excess)
	}
}

// A failer is a mapper that knows whether a failed write has taken it out of
// service.
type failer interface{ Failed() bool }

// device composes the layers. It calls changing before and after each change.
func (c *chain) device(changing func(mapping bool)) (*block.Device, error) {
	unpacked := c.s.caches.take(leastUnpacked, mostUnpacked)
	c.caches += unpacked
	return c.compose(c.layers[0].Mapper, block.Options{UnpackedCache: unpacked, Changing: changing})
}

// compose composes the layers with a top layer.
func (c *chain) compose(top storage.Mapper, opt block.Options) (*block.Device, error) {
	mappers := []storage.Mapper{top}
	for i := range c.layers[1:] {
		mappers = append(mappers, c.layers[i+1].Mapper)
	}
	opt.Nodes = make([]*storage.Node, len(c.bases))
	for i, b := range c.bases {
		opt.Nodes[i] = b.node()
	}
	opt.Unpacking, opt.Check = c.s.unpack, c.s.opt.Check
	return block.New(mappers, opt)
}

// close closes the layers and then what they stand on.
func (c *chain) close() error {
	return errors.Join(c.closeLayers(), c.closeBases())
}

func (c *chain) closeLayers() error {
	var errs []error
	for _, l := range c.layers {
		errs = append(errs, l.Mapper.Close())
	}
	c.s.caches.put(c.caches)
	return errors.Join(errs...)
}

func (c *chain) closeBases() error {
	var errs []error
	for i, b := range c.bases {
		errs = append(errs, b.close(), c.s.files.put(b.shared, i > 0))
	}
	return errors.Join(errs...)
}
