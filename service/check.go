package service

import (
	"context"
	"errors"
	"fmt"

	"github.com/extentd/extentd/storage"
)

// What a check repairs.
const (
	RepairNone  = "none"
	RepairLeaks = "leaks" // clusters that nothing refers to
	RepairAll   = "all"
)

// CheckOptions configure a driver's check.
type CheckOptions struct {
	// Repair is RepairNone, RepairLeaks or RepairAll.
	Repair string
	// OpenData is as in DriverOptions.
	OpenData func(ctx context.Context, name string) (*storage.Node, error)
}

// A CheckReport is what a check found. Of what it has repaired it counts what
// is left.
type CheckReport struct {
	Format                       string
	Corruptions, Leaks           int64
	CorruptionsFixed, LeaksFixed int64
	Errors                       []string // the first ones, for people
	ImageEnd                     int64    // where the last cluster in use ends, bytes
	AllocatedClusters            int64    // of the guest's data, as are those below
	TotalClusters                int64
	FragmentedClusters           int64
	CompressedClusters           int64
}

// Check checks the image's own metadata, not its backing's, and repairs it if
// asked to: that is refused like any other change, and what corruption is
// repaired in an image that is in use is refused with storage.ErrConflict. A
// format that has no metadata fails with storage.ErrUnsupported.
func (s *Service) Check(ctx context.Context, name, repair string) (*CheckReport, error) {
	src, err := s.find(name)
	if err != nil {
		return nil, err
	}
	if err := s.checkRepair(&src, repair); err != nil {
		return nil, named(name, err)
	}
	report, err := s.check(ctx, &src, name, repair)
	if err != nil {
		return nil, err
	}
	report.Format = src.format
	s.tally.checked(name, report)
	return report, nil
}

// checkRepair refuses what cannot be asked of an image.
func (s *Service) checkRepair(src *source, repair string) error {
	switch repair {
	case RepairNone, RepairLeaks, RepairAll:
	default:
		return &storage.InvalidError{Field: "repair", Detail: fmt.Sprintf("is %q, must be none, leaks or all", repair)}
	}
	if _, err := src.identify(); err != nil {
		return err
	}
	if s.opt.Formats[src.format].Check == nil {
		return fmt.Errorf("%w: images of format %s have nothing to check", storage.ErrUnsupported, src.format)
	}
	if repair != RepairNone && (s.opt.ReadOnly || src.readOnly()) {
		return storage.ErrReadOnly
	}
	return nil
}

func (s *Service) check(ctx context.Context, src *source, name, repair string) (*CheckReport, error) {
	acquire := s.wake // what is allocated here has not leaked
	if repair != RepairNone {
		acquire = s.AcquireWritable
	}
	h, err := acquire(ctx, name)
	if errors.Is(err, storage.ErrCorrupt) { // too much so for being opened
		report, err := s.checkUnopened(ctx, src, name, repair)
		return report, named(name, err)
	}
	if err != nil {
		return nil, err
	}
	defer h.Release()
	if repair != RepairNone { // what it repairs may be the map
		h.counts.changing(true)
		defer h.counts.changing(true)
	}
	report, err := h.chain.layers[0].Check(ctx, repair)
	h.Report(err)
	return report, named(name, err)
}

// named says of which image an error is.
func named(name string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("image %q: %w", name, err)
}

// checkUnopened checks an image by its files alone. For a repair they must be in
// use by nobody.
func (s *Service) checkUnopened(ctx context.Context, src *source, name, repair string) (report *CheckReport, err error) {
	if h := s.share(name); h != nil { // unless somebody uses it, nobody has it open then
		s.evict(h)
		h.Release()
	}
	c := &chain{s: s}
	defer func() {
		if repair != RepairNone {
			c.wrote(c.bases...)
		}
		s.files.release(c, c.shared())
		err = errors.Join(err, c.closeBases())
	}()
	own := func(b *base) error {
		if repair == RepairNone {
			return nil
		}
		if s.files.claim(c, b.files()) != nil {
			return fmt.Errorf("%w: the image is in use", storage.ErrConflict)
		}
		if err := s.checkUnused(ctx, b.files(), c.bases[0].shared.key.file); err != nil {
			return err
		}
		return b.node().StartWriting(ctx)
	}
	top, err := c.addFirst(ctx, []source{*src})
	if err != nil {
		return nil, err
	}
	if err := own(top); err != nil {
		return nil, err
	}
	return s.opt.Formats[src.format].Check(ctx, top.node(), CheckOptions{
		Repair: repair,
		OpenData: func(ctx context.Context, stored string) (*storage.Node, error) {
			data, err := c.addData(ctx, src, stored)
			if err != nil {
				return nil, err
			}
			return data.node(), own(data)
		},
	})
}

// shared is what the chain stands on.
func (c *chain) shared() []*sharedFile {
	var files []*sharedFile
	for _, b := range c.bases {
		files = append(files, b.files()...)
	}
	return files
}
