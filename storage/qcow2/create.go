package qcow2

import (
	"context"
	"fmt"
	"math/bits"
	"strings"

	"github.com/extentd/extentd/storage"
)

// CreateOptions say what a new image is like. The zero value is an empty one.
type CreateOptions struct {
	// Size is the virtual size in bytes, rounded up to a multiple of 512.
	Size int64
	// ClusterSize in bytes: a power of two, 512 to 2 MiB. Default: 64 KiB.
	ClusterSize int64
	// RefcountBits is the width of a refcount: a power of two, 1 to 64.
	// Default: 16.
	RefcountBits int
	// Version is 2 (compat 0.10) or 3 (1.1). Default: 3.
	Version int
	// ExtendedL2 splits clusters, of 16 KiB at least, into 32 subclusters.
	ExtendedL2 bool
	// LazyRefcounts postpones writing refcounts.
	LazyRefcounts bool
	// CompressionType of compressed clusters: "zlib" or "zstd". Default:
	// "zlib".
	CompressionType string
	// Backing is the name of the backing file, at most 1,023 bytes, and
	// BackingFormat its format, at most 15 bytes: both are stored as they are,
	// and neither without the other. Default: none.
	Backing, BackingFormat string
	// DataFile is the name of an external data file, stored as it is. Default:
	// none.
	DataFile string
	// DataNode is that file, which gets the virtual size, and storage as
	// Preallocation says. Default: it is left alone.
	DataNode *storage.Node
	// DataFileRaw keeps the external data file a raw image of the disk. All
	// clusters are mapped then.
	DataFileRaw bool
	// Preallocation is "off", "metadata": all clusters are mapped; "falloc":
	// and have storage; or "full": and zeros were written to it. Default:
	// "off".
	Preallocation string
}

// Values of CreateOptions.Preallocation.
const (
	preallocationOff      = "off"
	preallocationMetadata = "metadata"
	preallocationFalloc   = "falloc"
	preallocationFull     = "full"
)

const (
	defaultClusterSize  = 64 << 10
	defaultRefcountBits = 16
	compressionNameZlib = "zlib"
	compressionNameZstd = "zstd"
)

// Create makes an image in node, whose file must be empty, as qemu-img create
// does. It is durable when Create returns; what a crash leaves behind before
// that is no qcow2 image. Options that cannot be, alone or together, fail with a
// *[storage.InvalidError] before anything is written. It takes no more than a
// few MiB of memory, however large the image.
func Create(ctx context.Context, node *storage.Node, opt CreateOptions) error {
	opt = opt.complete()
	if err := opt.check(); err != nil {
		return fmt.Errorf("qcow2: create: %w", err)
	}
	l, err := newLayout(&opt)
	if err != nil {
		return fmt.Errorf("qcow2: create: %w", err)
	}
	head, err := l.head(&opt)
	if err != nil {
		return fmt.Errorf("qcow2: create: %w", err)
	}
	size, err := node.Size(ctx)
	if err == nil && size != 0 {
		err = fmt.Errorf("%w: the file has %d bytes already", storage.ErrConflict, size)
	}
	if err == nil {
		l.src, err = newSource(ctx, node)
	}
	if err == nil {
		err = l.write(ctx, &opt, head)
	}
	if err != nil {
		return fmt.Errorf("qcow2: create: %w", err)
	}
	return nil
}

// complete puts in the defaults.
func (o CreateOptions) complete() CreateOptions {
	if o.ClusterSize == 0 {
		o.ClusterSize = defaultClusterSize
	}
	if o.RefcountBits == 0 {
		o.RefcountBits = defaultRefcountBits
	}
	if o.Version == 0 {
		o.Version = 3
	}
	if o.CompressionType == "" {
		o.CompressionType = compressionNameZlib
	}
	if o.Preallocation == "" {
		o.Preallocation = preallocationOff
	}
	return o
}

// check checks complete options.
func (o *CreateOptions) check() error {
	switch {
	case o.Size < 0 || o.Size > storage.MaxSize:
		return invalid("size", "is %d, must be 0 to %d", o.Size, storage.MaxSize)
	case o.Version != 2 && o.Version != 3:
		return invalid("compat", "is version %d, must be 0.10 (version 2) or 1.1 (version 3)", o.Version)
	case o.ClusterSize < 1<<minClusterBits || o.ClusterSize > 1<<maxClusterBits || bits.OnesCount64(uint64(o.ClusterSize)) != 1:
		return invalid("cluster_size", "is %d, must be a power of two from %d to %d", o.ClusterSize, 1<<minClusterBits, 1<<maxClusterBits)
	case o.ExtendedL2 && o.ClusterSize < 1<<(minSubclusterBits+subclusterBits):
		return invalid("cluster_size", "is %d, must be at least %d with extended_l2", o.ClusterSize, 1<<(minSubclusterBits+subclusterBits))
	case o.RefcountBits < 1 || o.RefcountBits > 1<<maxRefcountOrder || bits.OnesCount(uint(o.RefcountBits)) != 1:
		return invalid("refcount_bits", "is %d, must be a power of two from 1 to 64", o.RefcountBits)
	case o.CompressionType != compressionNameZlib && o.CompressionType != compressionNameZstd:
		return invalid("compression_type", "is %q, must be zlib or zstd", o.CompressionType)
	}
	if err := o.checkVersion(); err != nil {
		return err
	}
	if err := o.checkNames(); err != nil {
		return err
	}
	return o.checkPreallocation()
}

// checkVersion checks what version 2 does not have.
func (o *CreateOptions) checkVersion() error {
	if o.Version == 3 {
		return nil
	}
	const needs = "needs compat 1.1"
	switch {
	case o.ExtendedL2:
		return invalid("extended_l2", needs)
	case o.LazyRefcounts:
		return invalid("lazy_refcounts", needs)
	case o.RefcountBits != defaultRefcountBits:
		return invalid("refcount_bits", "is %d, which needs compat 1.1", o.RefcountBits)
	case o.CompressionType != compressionNameZlib:
		return invalid("compression_type", "is %s, which needs compat 1.1", o.CompressionType)
	case o.DataFile != "":
		return invalid("data_file", needs)
	}
	return nil
}

// checkNames checks the names of other files.
func (o *CreateOptions) checkNames() error {
	for _, f := range []struct {
		field, value string
		most         int
	}{
		{"backing", o.Backing, maxBackingName},
		{"backing_format", o.BackingFormat, maxBackingFormat},
		{"data_file", o.DataFile, maxDataFileName},
	} {
		if len(f.value) > f.most {
			return invalid(f.field, "has %d bytes, may have %d", len(f.value), f.most)
		}
		if strings.ContainsRune(f.value, 0) {
			return invalid(f.field, "must not contain a NUL")
		}
	}
	switch {
	case o.Backing == "" && o.BackingFormat != "":
		return invalid("backing_format", "needs a backing")
	case o.Backing != "" && o.BackingFormat == "":
		return invalid("backing_format", "must be given with a backing: formats are not guessed")
	case o.DataFileRaw && o.DataFile == "":
		return invalid("data_file_raw", "needs a data_file")
	case o.DataFileRaw && o.Backing != "":
		return invalid("data_file_raw", "excludes a backing")
	case o.DataNode != nil && o.DataFile == "":
		return invalid("data_file", "must have a name")
	}
	return nil
}

func (o *CreateOptions) checkPreallocation() error {
	switch o.Preallocation {
	case preallocationOff, preallocationMetadata:
	case preallocationFalloc, preallocationFull:
		if o.DataFile != "" && o.DataNode == nil {
			return invalid("preallocation", "is %s, for which the data file must be open", o.Preallocation)
		}
	default:
		return invalid("preallocation", "is %q, must be off, metadata, falloc or full", o.Preallocation)
	}
	if o.Preallocation != preallocationOff && o.Backing != "" && !o.ExtendedL2 {
		return invalid("preallocation", "is %s, which with a backing needs extended_l2", o.Preallocation)
	}
	return nil
}

// maps reports whether all clusters are mapped from the start. A raw data file
// is read by others without the map, so the map must say the same.
func (o *CreateOptions) maps() bool { return o.Preallocation != preallocationOff || o.DataFileRaw }

func invalid(field, format string, args ...any) error {
	return &storage.InvalidError{Field: field, Detail: fmt.Sprintf(format, args...)}
}
