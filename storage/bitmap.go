package storage

import "context"

// A BitmapInfo is what is known of a persistent dirty bitmap.
type BitmapInfo struct {
	Name        string // as stored: untrusted, not always UTF-8, and perhaps not the only one of its name
	Granularity int64  // bytes that a bit stands for, a power of two from 512 to 2 GiB
	// Enabled: every write is recorded in it. Otherwise it is frozen.
	Enabled bool
	// Inconsistent: it was not stored when the image was last written to. What it
	// says is lost; all that can be done with it is to delete it.
	Inconsistent bool
	// Dirty is how much of the image it marks, bytes: its granules, the last of them
	// up to the image's end. -1: it has not been counted.
	Dirty int64
}

// A BitmapChangeKind is what is done with a bitmap.
type BitmapChangeKind uint8

// Kinds of changes.
const (
	// BitmapCreate makes one, in which nothing is dirty. It fails with [ErrExists]
	// where there is one of the name, even if it is inconsistent.
	BitmapCreate BitmapChangeKind = iota + 1
	// BitmapDelete removes one, also an inconsistent one.
	BitmapDelete
	// BitmapClear makes nothing dirty in it.
	BitmapClear
	// BitmapEnable begins to record in it, and goes on where it is enabled.
	BitmapEnable
	// BitmapDisable ends that: it stays as it is.
	BitmapDisable
	// BitmapMerge adds to it what is dirty in others of the same image. Where their
	// granularities differ, more than that may become dirty, never less.
	BitmapMerge
)

// String is the kind for error texts.
func (k BitmapChangeKind) String() string {
	names := [...]string{BitmapCreate: "create", BitmapDelete: "delete", BitmapClear: "clear", BitmapEnable: "enable", BitmapDisable: "disable", BitmapMerge: "merge"}
	if int(k) >= len(names) || k == 0 {
		return "invalid change"
	}
	return names[k]
}

// A BitmapChange is one step of a change of bitmaps.
type BitmapChange struct {
	Kind BitmapChangeKind
	Name string // of the bitmap; a new one: 1 to 1,023 bytes of UTF-8 without NUL
	// Granularity, of BitmapCreate: bytes, a power of two from 512 to 2 GiB. Default:
	// 64 KiB.
	Granularity int64
	// Enabled, of BitmapCreate: it records from the start. Default: it does not.
	Enabled bool
	// From, of BitmapMerge: the names of the bitmaps to add, at least one.
	From []string
}

// A BitmapKeeper is a [WritableMapper] with persistent dirty bitmaps. Those of
// images that were opened for reading can be read.
type BitmapKeeper interface {
	// Bitmaps are all of them, in the order of their creation.
	Bitmaps(ctx context.Context) ([]BitmapInfo, error)
	// ChangeBitmaps applies the changes one after the other as one change: all of
	// them or none, also after a crash. It is durable when it returns, and so is what
	// was written before. The caller sees to it that nobody writes data meanwhile. It
	// fails with [ErrNotFound] and [ErrExists], with [ErrConflict] for bitmaps that
	// are inconsistent, with an *[InvalidError] for a name or granularity that cannot
	// be, and with [ErrUnsupported] where the format, or the memory that is allowed
	// for bitmaps, has no room for the result.
	ChangeBitmaps(ctx context.Context, changes []BitmapChange) error
	// Dirty calls visit for [off, off+n) in order, without gaps and each time with
	// another answer: whether the bitmap marks the piece. What is written, or done to
	// the bitmap, meanwhile may be seen or not. It fails with [ErrNotFound] where
	// there is no such bitmap, with [ErrConflict] where it is inconsistent; an error
	// of visit ends it, and is returned.
	Dirty(ctx context.Context, name string, off, n int64, visit func(off, n int64, dirty bool) error) error
}

// A BitmapJoiner is a BitmapKeeper whose changes can be made together with others.
type BitmapJoiner interface {
	// ChangeBitmapsWith is ChangeBitmaps that calls also when everything is durable
	// but the one write that makes it so. Where also fails nothing is changed, and its
	// error is returned. The image stands still for the time, but for its readers: who
	// joins several always takes them in the same order.
	ChangeBitmapsWith(ctx context.Context, changes []BitmapChange, also func(ctx context.Context) error) error
}

// A Recorder is a [WritableMapper] that is told of every change of what the image
// reads as before the first effect, also of data that is written in place.
type Recorder interface {
	// Record makes [off, off+n) dirty in every enabled bitmap; what lies past the
	// size is ignored. It allocates nothing, and costs one atomic load where there is
	// no such bitmap. On an error nothing must be written.
	Record(ctx context.Context, off, n int64) error
}
