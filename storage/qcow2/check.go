package qcow2

import (
	"context"
	"errors"
	"fmt"
	"math"

	"github.com/extentd/extentd/storage"
)

// A Repair is how much of what a check finds is repaired.
type Repair uint8

// Kinds of repair.
const (
	// RepairNone only looks.
	RepairNone Repair = iota
	// RepairLeaks lowers refcounts that are too high. Where nothing else is
	// wrong it sets the COPIED flags that this calls for.
	RepairLeaks
	// RepairAll repairs everything that QEMU would: refcounts, COPIED flags,
	// the refcount structures, and the snapshot table. What refers to a place
	// where its target cannot be is left as it is: only a backup helps.
	RepairAll
)

// CheckOptions configure a check. The zero value only looks.
type CheckOptions struct {
	Repair Repair
	// OpenData opens the external data file of an image that has one, as in
	// [Options]; where it fails, so does the check. Default: the file is not
	// opened. What is in it is not looked at.
	OpenData func(ctx context.Context, name string) (*storage.Node, error)
}

// A CheckResult is what a check has found. The numbers are those that
// qemu-img check has.
type CheckResult struct {
	// Corruptions and Leaks are left: refcounts that are too low, and whatever
	// else contradicts the format; and clusters whose refcount is too high.
	Corruptions, Leaks int64
	// CorruptionsFixed and LeaksFixed were there and are repaired.
	CorruptionsFixed, LeaksFixed int64
	// CheckErrors is how often something could not be checked or repaired. The
	// other numbers may be too low then.
	CheckErrors int64
	// Errors say what and where: of what was found the first hundred.
	Errors []string

	ImageEnd           int64 // after the last cluster in use, bytes
	TotalClusters      int64 // that the virtual size has
	AllocatedClusters  int64 // of those, how many have storage of their own
	FragmentedClusters int64 // of those, how many do not follow the one before
	CompressedClusters int64
}

// Clean reports whether nothing was left, and everything was checked.
func (r *CheckResult) Clean() bool { return r.Corruptions == 0 && r.Leaks == 0 && r.CheckErrors == 0 }

// maxFindings is how many findings are described.
const maxFindings = 100

// Check checks the image in node as qemu-img check does, also one that is
// marked dirty or corrupt, and repairs it where the options say so. Nothing else
// may use the image meanwhile, or, without a repair, write to it. What of the
// header and its extensions makes the image unreadable fails with
// [storage.ErrCorrupt]; what the check finds is no error. A repair that is cut
// off at any time leaves an image that another one can repair. The memory that
// it takes is a byte for each cluster that is in use, more where many refer to
// one, and at most a GiB.
func Check(ctx context.Context, node *storage.Node, opt CheckOptions) (CheckResult, error) {
	src, err := newSource(ctx, node)
	if err != nil {
		return CheckResult{}, err
	}
	return checkSource(ctx, src, opt, nil)
}

// Check is [Check] for an open image. One that is being written to stands still
// for the time; clusters that are reserved are neither counted nor repaired. An
// image that is not being written to can only be looked at: a repair fails with
// [storage.ErrReadOnly].
func (i *Image) Check(ctx context.Context, opt CheckOptions) (CheckResult, error) {
	if err := i.checkOpen(); err != nil {
		return CheckResult{}, err
	}
	if opt.Repair == RepairNone && i.writer.Load() == nil {
		res, err := checkSource(ctx, i.src, opt, nil)
		if i.writer.Load() == nil { // else it was not left alone
			return res, err
		}
	}
	var res CheckResult
	err := i.quiesced(ctx, func(w *writer) error {
		var err error
		res, err = checkSource(ctx, w.src, opt, w.reserved.list)
		if opt.Repair != RepairNone {
			err = errors.Join(err, w.reload(context.WithoutCancel(ctx)))
		}
		return err
	})
	return res, err
}

// checkSource is Check. Each of the held runs counts as a reference.
func checkSource(ctx context.Context, src source, opt CheckOptions, held []run) (CheckResult, error) {
	if opt.Repair > RepairAll {
		return CheckResult{}, &storage.InvalidError{Field: "repair", Detail: fmt.Sprintf("is %d, must be none, leaks or all", opt.Repair)}
	}
	c := &checker{src: src, opt: opt, held: held}
	if err := c.begin(ctx); err != nil {
		return CheckResult{}, err
	}
	if err := c.openData(ctx); err != nil {
		return CheckResult{}, err
	}
	if opt.Repair == RepairNone {
		err := c.check(ctx)
		return c.res, err
	}
	if err := c.repair(ctx); err != nil || c.res.CorruptionsFixed == 0 && c.res.LeaksFixed == 0 {
		return c.res, err
	}
	again := &checker{src: src, held: held, res: CheckResult{Errors: c.res.Errors}}
	if err := again.begin(ctx); err != nil {
		return c.res, err
	}
	err := again.check(ctx)
	again.res.CorruptionsFixed, again.res.LeaksFixed = c.res.CorruptionsFixed, c.res.LeaksFixed
	return again.res, err
}

// A checker checks one image once.
type checker struct {
	*Image // as much of one as the methods that read entries need
	src    source
	opt    CheckOptions
	held   []run // clusters that have a reference in memory
	res    CheckResult
	header header

	fileEnd   int64 // bytes, whole sectors
	end       int64 // after the last cluster, of the file or that something refers to
	counts    *counts
	seen      *counts // when entries are mended: what refers to what
	l1Shared  runs    // clusters of the active L1 table that are other metadata too
	snapshots []checkedSnapshot
	cutShort  bool // snapshots: the table has to be written anew
	table     []uint64
	mendable  bool   // there are entries that can be mended
	mending   bool   // and they are
	rebuild   bool   // the refcount structures cannot be mended in place
	unusable  runs   // clusters whose refcounts cannot be read
	l1, l2    []byte // buffers
}

// begin reads the header. It lets pass what a repair can mend.
func (c *checker) begin(ctx context.Context) error {
	w := &window{source: c.src}
	b, err := w.at(ctx, 0, 0, headerRead)
	if err != nil {
		return fmt.Errorf("qcow2: header: %w", err)
	}
	h := decodeHeader(b)
	if err := h.checkLayout(); err != nil {
		return err
	}
	if h.incompatible&^incompatKnown != 0 {
		return unknownFeatures(ctx, w, h)
	}
	lenient := *h
	lenient.snapshots, lenient.snapshotsOffset = 0, 0
	lenient.refcountTableClusters = max(1, h.refcountTableClusters)
	if err := lenient.checkTables(); err != nil {
		return err
	}
	ext, err := readExtensions(ctx, w, h)
	if err != nil {
		return err
	}
	c.header = *h
	c.Image = &Image{geometry: newGeometry(h), node: c.src.node, src: c.src, info: newInfo(h, &ext, "")}
	c.apply(&state{header: *h, bitmaps: ext.bitmaps, info: c.info})
	if err := c.walkBitmaps(ctx, w, nil); err != nil {
		return err
	}
	size, err := c.src.node.Size(ctx)
	if err != nil {
		return fmt.Errorf("qcow2: %w", err)
	}
	c.fileEnd = ceilDiv(size, sectorSize) * sectorSize
	if c.end = ceilDiv(c.fileEnd, c.clusterSize()); c.end > math.MaxInt32 {
		return unsupported("the file has %d clusters, a check can take %d at most", c.end, math.MaxInt32)
	}
	c.res.TotalClusters = ceilDiv(c.Size(), c.clusterSize())
	return nil
}

// openData asks for the external data file.
func (c *checker) openData(ctx context.Context) error {
	if !c.info.HasDataFile || c.opt.OpenData == nil {
		return nil
	}
	_, err := openData(ctx, Options{OpenData: c.opt.OpenData}, c.info.DataFile)
	return err
}

// check is a check without a repair.
func (c *checker) check(ctx context.Context) error {
	if err := c.readSnapshots(ctx); err != nil {
		return err
	}
	if err := c.countAll(ctx); err != nil {
		return err
	}
	if err := c.compare(ctx, RepairNone, true); err != nil {
		return err
	}
	return c.checkCopied(ctx, false)
}

// corruption counts and describes one.
func (c *checker) corruption(format string, args ...any) {
	c.res.Corruptions++
	c.describe(format, args...)
}

func (c *checker) describe(format string, args ...any) {
	if len(c.res.Errors) < maxFindings {
		c.res.Errors = append(c.res.Errors, fmt.Sprintf(format, args...))
	}
}
