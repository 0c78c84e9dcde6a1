package service

import (
	"context"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/raw"
)

// A Driver opens layers of one format.
type Driver struct {
	// Extensions are those that tell the format, with their dot.
	Extensions []string
	// Children: layers may have a backing and an external data file.
	Children bool
	// Open opens the layer in node, which it does not close.
	Open func(ctx context.Context, node *storage.Node, opt DriverOptions) (Layer, error)
}

// DriverOptions are what a driver may ask its caller for.
type DriverOptions struct {
	// OpenData opens the external data file that the image names. The node is
	// not the driver's to close.
	OpenData func(ctx context.Context, name string) (*storage.Node, error)
	// CacheSize bounds what the layer keeps of its metadata, bytes.
	CacheSize int64
}

// A Layer is what a driver opened.
type Layer struct {
	Mapper storage.Mapper
	// Backing and BackingFormat are as stored in the image, "" for none.
	Backing, BackingFormat string
	// ClusterSize in bytes, 0 where the format has none.
	ClusterSize int64
	// Describe tells what is particular to a qcow2 image; nil: it is none.
	Describe func(ctx context.Context) (*QCOW2, error)
}

// RawDriver opens raw images.
func RawDriver() Driver {
	return Driver{
		Extensions: []string{".raw", ".img"},
		Open: func(ctx context.Context, node *storage.Node, _ DriverOptions) (Layer, error) {
			i, err := raw.New(ctx, node)
			if err != nil {
				return Layer{}, err
			}
			return Layer{Mapper: i}, nil
		},
	}
}
