package crash_test

import (
	"context"
	"errors"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/block"
	"github.com/extentd/extentd/storage/qcow2"
	"github.com/extentd/extentd/storage/raw"
)

// A disk is an open image: its layers and their files.
type disk struct {
	*block.Device
	image *qcow2.Image
	below *raw.Image
	nodes []*storage.Node
}

// openDisk opens the image of a kind over its files, by their names.
func openDisk(ctx context.Context, files map[string]storage.File) (*disk, error) {
	d := &disk{}
	node := func(name string) *storage.Node {
		n := storage.NewNode(name, files[name], storage.NodeOptions{Check: true})
		d.nodes = append(d.nodes, n)
		return n
	}
	var err error
	d.image, err = qcow2.Open(ctx, node("image.qcow2"), qcow2.Options{
		OpenData:  func(context.Context, string) (*storage.Node, error) { return node("data.raw"), nil },
		CacheSize: 64 << 10, // little, so that slices come and go
	})
	if err != nil {
		return nil, err
	}
	layers := []storage.Mapper{d.image}
	if files["below.raw"] != nil {
		if d.below, err = raw.New(ctx, node("below.raw")); err != nil {
			return nil, err
		}
		layers = append(layers, d.below)
	}
	d.Device, err = block.New(layers, block.Options{Nodes: d.nodes, Check: true})
	return d, err
}

// startWriting makes it writable, as the service does.
func (d *disk) startWriting(ctx context.Context) error {
	if err := d.image.StartWriting(ctx); err != nil {
		return err
	}
	return d.StartWriting(ctx)
}

// close closes image and backing. Its error counts.
func (d *disk) close() error {
	err := d.image.Close()
	if d.below != nil {
		err = errors.Join(err, d.below.Close())
	}
	return err
}

// closeFiles closes the files after it.
func (d *disk) closeFiles() error {
	var errs []error
	for _, n := range d.nodes {
		errs = append(errs, n.Close())
	}
	return errors.Join(errs...)
}
