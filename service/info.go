package service

import (
	"context"
	"time"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/filter"
)

// Info describes an image. Sizes and offsets are bytes.
type Info struct {
	Name           string
	Format         string // of the top layer, as are Size and Allocated
	Size           int64
	Allocated      int64 // on disk, with the external data file
	ReadOnly       bool  // it is never written to; false does not say that the file lets us
	Generation     string
	DataGeneration string
	Limits         storage.Limits
	Layers         []LayerInfo // the top first
	QCOW2          *QCOW2      // nil for other formats
}

// LayerInfo describes one layer of a chain.
type LayerInfo struct {
	Depth         int // 0 is the top
	Format        string
	Node          string
	Size          int64
	Allocated     int64  // on disk, without an external data file
	ClusterSize   int64  // 0: the format has none
	BackingFile   string // as stored in the image, "" for none
	BackingFormat string // as stored, "" for none
	// Graph is what the layer stands on, from the node upwards. Node is its last.
	Graph []NodeInfo
}

// QCOW2 is what is particular to a qcow2 image: of its top layer.
type QCOW2 struct {
	Version         int // 2 or 3
	ClusterSize     int64
	RefcountBits    int
	CompressionType string // "zlib" or "zstd"
	ExtendedL2      bool
	LazyRefcounts   bool
	Dirty           bool
	Corrupt         bool
	DataFile        string // as stored in the image, "" for none
	DataFileRaw     bool
	Encryption      string // "", "aes" or "luks"
	Snapshots       []Snapshot
	Bitmaps         []storage.BitmapInfo // as [Handle.BitmapDirectory] has them
}

// A Snapshot is an internal snapshot.
type Snapshot struct {
	ID          string
	Name        string
	Created     time.Time
	Size        int64 // the image's as of then
	VMStateSize int64
	VMClock     time.Duration
	ICount      int64 // -1: not recorded
}

// Info describes the image. It reads the snapshot table and the bitmap
// directory of a qcow2 image.
func (h *Handle) Info(ctx context.Context) (Info, error) {
	top := &h.chain.layers[0]
	info := Info{
		Name:           h.name,
		Format:         top.format,
		Size:           h.device.Size(),
		ReadOnly:       h.ReadOnly(),
		Generation:     h.Generation(),
		DataGeneration: h.DataGeneration(),
	}
	var err error
	if info.Limits, err = h.device.Limits(ctx); err != nil {
		return Info{}, err
	}
	for depth := range h.chain.layers {
		l := &h.chain.layers[depth]
		allocated, err := l.node.Allocated(ctx)
		if err != nil {
			return Info{}, err
		}
		graph, err := l.base.info(ctx)
		if err != nil {
			return Info{}, err
		}
		if depth == 0 {
			info.Allocated = allocated
		}
		info.Layers = append(info.Layers, LayerInfo{
			Depth:         depth,
			Format:        l.format,
			Node:          l.node.Name(),
			Size:          l.Mapper.Size(),
			Allocated:     allocated,
			ClusterSize:   l.ClusterSize,
			BackingFile:   l.Backing,
			BackingFormat: l.BackingFormat,
			Graph:         graph,
		})
	}
	if top.data != nil {
		allocated, err := top.data.node().Allocated(ctx)
		if err != nil {
			return Info{}, err
		}
		info.Allocated += allocated
	}
	if top.Describe != nil {
		if info.QCOW2, err = top.Describe(ctx); err != nil {
			return Info{}, err
		}
	}
	return info, nil
}

// info describes the nodes of a base.
func (b *base) info(ctx context.Context) ([]NodeInfo, error) {
	infos := make([]NodeInfo, len(b.nodes))
	for i, n := range b.nodes {
		limits, err := n.Advertised(ctx)
		if err != nil {
			return nil, err
		}
		infos[i] = NodeInfo{Kind: n.kind, Name: n.Name(), Limits: limits}
		if c, counts := n.File().(filter.Counting); counts {
			infos[i].Counters = c.Counters()
		}
	}
	return infos, nil
}
