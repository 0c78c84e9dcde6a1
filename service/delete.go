package service

import (
	"context"
	"errors"
	"fmt"

	"github.com/extentd/extentd/storage"
)

// ErrPrecondition: the image is no longer what the caller wanted to change.
var ErrPrecondition = errors.New("the image has changed")

// Delete removes the image's own file from the served directory, and neither its
// backing nor its data file. Who reads it meanwhile goes on. The error wraps
// storage.ErrConflict where another image needs the file, storage.ErrBusy where
// another process does, storage.ErrReadOnly, or ErrPrecondition if match, where
// it is not nil, says no to the data generation.
func (s *Service) Delete(ctx context.Context, name string, match func(dataGeneration string) bool) error {
	src, err := s.find(name)
	if err != nil {
		return err
	}
	err = s.delete(ctx, &src, name, match)
	s.tally.delete(name, err)
	return err
}

func (s *Service) delete(ctx context.Context, src *source, name string, match func(string) bool) error {
	if s.opt.ReadOnly {
		return named(name, storage.ErrReadOnly)
	}
	if src.spec != nil {
		return fmt.Errorf("image %q: %w: only images in the served directory are deleted", name, storage.ErrReadOnly)
	}
	h, err := s.Acquire(ctx, name)
	if err != nil {
		if match != nil || ctx.Err() != nil {
			return err
		}
		return named(name, s.deleteUnopened(ctx, src))
	}
	defer h.Release()
	if err := h.takeTurn(ctx); err != nil {
		return err
	}
	defer h.giveTurn()
	f := h.chain.bases[0].shared
	err = s.deleteFile(ctx, src, f, h.image, func() bool { return h.ClaimDataGeneration(match) })
	if err == nil {
		s.evict(h)
		err = s.bury(name, h.image)
	}
	return named(name, err)
}

// deleteUnopened deletes an image that cannot be opened, whatever is wrong with
// it.
func (s *Service) deleteUnopened(ctx context.Context, src *source) error {
	f, err := s.files.get(ctx, src, false)
	if err != nil {
		return err
	}
	err = s.deleteFile(ctx, src, f, nil, func() bool { return true })
	return errors.Join(err, s.files.put(f, false))
}

// deleteFile removes the file while nobody can begin to need it. i is the image
// that it is open as, if it is; it may be written to.
func (s *Service) deleteFile(ctx context.Context, src *source, f *sharedFile, i *image, claim func() bool) error {
	if err := s.checkGraphs(f.key.file); err != nil {
		return err
	}
	if err := s.checkUnused(ctx, []*sharedFile{f}, f.key.file); err != nil { // before and after, as claim does
		return err
	}
	release, err := s.files.seal(f, i)
	if err != nil {
		return err
	}
	defer release()
	if err := s.checkUnused(ctx, []*sharedFile{f}, f.key.file); err != nil {
		return err
	}
	if !claim() {
		return ErrPrecondition
	}
	if err := f.file.StartWriting(ctx); err != nil { // for its lock: nobody else has the file open
		return err
	}
	if id, err := src.identify(); err != nil || keyOf(id) != f.key.file {
		return errors.Join(fmt.Errorf("%w: it was replaced meanwhile", storage.ErrConflict), err)
	}
	return src.root.dir.Remove(ctx, src.path)
}

// Resize sets the size of the image in bytes. It only grows unless shrink is
// set: then what lies beyond is lost. match is Delete's.
func (s *Service) Resize(ctx context.Context, name string, size int64, shrink bool, match func(dataGeneration string) bool) error {
	if size < 0 || size > storage.MaxSize {
		return &storage.InvalidError{Field: "size", Detail: fmt.Sprintf("is %d, must be from 0 to %d", size, storage.MaxSize)}
	}
	h, err := s.AcquireWritable(ctx, name)
	if err != nil {
		return err
	}
	defer h.Release()
	if !h.ClaimDataGeneration(match) {
		return named(name, ErrPrecondition)
	}
	if err := h.device.Resize(ctx, size, shrink); err != nil {
		h.Report(err)
		return fmt.Errorf("image %q: resize: %w", name, err)
	}
	return nil
}
