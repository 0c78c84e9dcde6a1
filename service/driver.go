package service

import (
	"context"

	"github.com/extentd/extentd/storage"
)

// A Driver opens layers of one format.
type Driver struct {
	// Extensions are those that tell the format, with their dot.
	Extensions []string
	// Children: layers may have a backing and an external data file.
	Children bool
	// Unaligned: layers ask their node for any offset and length, whatever its
	// limits are.
	Unaligned bool
	// Open opens the layer in node, which it does not close.
	Open func(ctx context.Context, node *storage.Node, opt DriverOptions) (Layer, error)
	// Peek reads what the image in node stores of its children. It opens none
	// of them. Nil: images of the format have none.
	Peek func(ctx context.Context, node *storage.Node) (Names, error)
	// Create makes a new image in node, which is empty. Nil: it cannot.
	Create func(ctx context.Context, node *storage.Node, opt CreateOptions) error
	// Check checks, and repairs, the image in node where it cannot be opened
	// otherwise: nobody else uses it. Nil: the format has nothing to check.
	Check func(ctx context.Context, node *storage.Node, opt CheckOptions) (*CheckReport, error)
}

// DriverOptions are what a driver may ask its caller for.
type DriverOptions struct {
	// OpenData opens the external data file that the image names. The node is
	// not the driver's to close.
	OpenData func(ctx context.Context, name string) (*storage.Node, error)
	// Backed: the layer has a backing, even if it stores the name of none.
	Backed bool
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
	// Snapshots are the layer's internal snapshots; nil: the format has none.
	Snapshots SnapshotKeeper
	// Check checks the layer, and repairs one that is written to; nil: there is
	// nothing to check.
	Check func(ctx context.Context, repair string) (*CheckReport, error)
}

// A SnapshotKeeper has internal snapshots. Their ids are those of [Snapshot]; of
// several with the same id the first is meant, and storage.ErrNotFound says that
// there is none. Nobody writes to the layer during Create and Revert.
type SnapshotKeeper interface {
	List(ctx context.Context) ([]Snapshot, error)
	// Create takes one of the layer as it is. It is durable when it returns.
	Create(ctx context.Context, name string) (Snapshot, error)
	Delete(ctx context.Context, id string) error
	// Revert makes the layer what it was, its size too. The snapshot stays.
	Revert(ctx context.Context, id string) error
	// Open opens one for reading, with a cache of so many bytes. It is closed before
	// the layer, and fails with storage.ErrNotFound once it has been deleted.
	Open(ctx context.Context, id string, cacheSize int64) (SnapshotMapper, error)
}

// A SnapshotMapper maps a layer as it was when a snapshot was taken.
type SnapshotMapper interface {
	storage.Mapper
	// Identity tells the snapshot from all others that the layer ever had.
	Identity() string
}
