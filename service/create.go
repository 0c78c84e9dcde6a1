package service

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/file"
)

// A CreateRequest says what to create. Fields that the format does not have
// must be left at their zero value.
type CreateRequest struct {
	// Name is the image's, with the extension of its format.
	Name string
	// Format is qcow2 or raw.
	Format string
	// Size in bytes. Default, without HasSize: the backing's.
	Size    int64
	HasSize bool
	// ClusterSize in bytes. Default: 64 KiB.
	ClusterSize int64
	// RefcountBits is the width of refcounts. Default: 16.
	RefcountBits int
	// Compat is "1.1" (version 3, the default) or "0.10" (version 2).
	Compat string
	// CompressionType is "zlib" (the default) or "zstd".
	CompressionType string
	// Preallocation is off (the default), metadata, falloc or full.
	Preallocation string
	// Backing is the name of an image of this server. Default: none.
	Backing string
	// BackingFormat must be that image's format. Default: it is.
	BackingFormat string
	// DataFile is the name of the external data file, which is created too,
	// beside the image. Default: none.
	DataFile      string
	ExtendedL2    bool
	LazyRefcounts bool
	DataFileRaw   bool
}

// CreateOptions are a CreateRequest whose names have been looked up.
type CreateOptions struct {
	CreateRequest
	// BackingFile is the name to store for the backing, "" for none.
	BackingFile string
	// DataNode is the external data file, which is empty; nil for none.
	DataNode *storage.Node
}

// Create makes a new image in the served directory. What it is in the middle of
// making has no name, and nothing is left of it when it fails. The error wraps
// storage.ErrExists, an *storage.InvalidError that names the field of the
// request, storage.ErrReadOnly, or says what is wrong with the backing.
func (s *Service) Create(ctx context.Context, r CreateRequest) error {
	if err := s.create(ctx, r); err != nil {
		return fmt.Errorf("create image %q: %w", r.Name, err)
	}
	return nil
}

func (s *Service) create(ctx context.Context, r CreateRequest) error {
	if s.opt.ReadOnly {
		return storage.ErrReadOnly
	}
	if err := s.checkCreate(&r); err != nil {
		return err
	}
	if s.opt.Dir == "" {
		return fmt.Errorf("%w: images are created in the served directory, and there is none", storage.ErrReadOnly)
	}
	opt := CreateOptions{CreateRequest: r}
	if r.Backing != "" {
		release, err := s.bindBacking(ctx, &opt)
		if err != nil {
			return fmt.Errorf("backing image %q: %w", r.Backing, err)
		}
		defer release()
	}
	return createFiles(ctx, s.roots[0].dir, s.opt.Formats[r.Format], opt)
}

// checkCreate refuses what can be refused without looking at any file.
func (s *Service) checkCreate(r *CreateRequest) error {
	driver, known := s.opt.Formats[r.Format]
	switch {
	case !known || driver.Create == nil:
		return &storage.InvalidError{Field: "format", Detail: fmt.Sprintf("is %q, which cannot be created here", r.Format)}
	case !ValidName(r.Name):
		return &storage.InvalidError{Field: "name", Detail: "must be 1 to 255 of [A-Za-z0-9._-] and begin with a letter or digit"}
	case FormatOf(r.Name, s.opt.Formats) != r.Format:
		return &storage.InvalidError{Field: "name", Detail: fmt.Sprintf("must have the extension of format %s, such as %s", r.Format, driver.Extensions[0])}
	}
	if _, explicit := s.images[r.Name]; explicit {
		return storage.ErrExists
	}
	return r.check(driver)
}

// check refuses fields that cannot be beside each other. What a format makes of
// its own options, its driver says.
func (r *CreateRequest) check(d Driver) error {
	switch {
	case !r.HasSize && r.Backing == "":
		return &storage.InvalidError{Field: "size", Detail: "must be given where there is no backing"}
	case r.Size < 0 || r.Size > storage.MaxSize:
		return &storage.InvalidError{Field: "size", Detail: fmt.Sprintf("is %d, must be from 0 to %d", r.Size, storage.MaxSize)}
	case r.Backing != "" && !d.Children:
		return &storage.InvalidError{Field: "backing", Detail: "is not for format " + r.Format}
	case r.DataFile != "" && !d.Children:
		return &storage.InvalidError{Field: "data_file", Detail: "is not for format " + r.Format}
	case r.BackingFormat != "" && r.Backing == "":
		return &storage.InvalidError{Field: "backing_format", Detail: "is only for an image with a backing"}
	case r.DataFileRaw && r.DataFile == "":
		return &storage.InvalidError{Field: "data_file_raw", Detail: "is only for an image with an external data file"}
	case r.DataFile != "" && (!ValidName(r.DataFile) || r.DataFile == r.Name):
		return &storage.InvalidError{Field: "data_file", Detail: "must be the name of another new file, in the same directory"}
	}
	return nil
}

// bindBacking opens the backing, and keeps it from being written to until
// release is called.
func (s *Service) bindBacking(ctx context.Context, opt *CreateOptions) (release func(), err error) {
	h, err := s.acquireUnwritten(ctx, opt.Backing)
	if err != nil {
		return nil, unavailable(err)
	}
	if err := s.bind(opt, h); err != nil {
		h.Release()
		return nil, err
	}
	f := h.chain.bases[0].shared
	if !s.files.name(f) {
		h.Release()
		return nil, fmt.Errorf("%w: it is being written to", storage.ErrConflict)
	}
	return func() {
		s.files.unname(f)
		h.Release()
	}, nil
}

// acquireUnwritten is Acquire. If the image was written to and nobody uses it
// anymore, it is closed before.
func (s *Service) acquireUnwritten(ctx context.Context, name string) (*Handle, error) {
	h, err := s.Acquire(ctx, name)
	if err != nil || !h.writing.Load() {
		return h, err
	}
	s.evict(h)
	h.Release()
	return s.Acquire(ctx, name)
}

// bind fills in what of the backing stands in the new image.
func (s *Service) bind(opt *CreateOptions, h *Handle) error {
	if h.top.graph != nil {
		return fmt.Errorf("%w: it stands on a graph, which no image can name", storage.ErrRefused)
	}
	format := h.LayerFormat(0)
	if opt.BackingFormat == "" {
		opt.BackingFormat = format
	}
	if opt.BackingFormat != format {
		return &storage.InvalidError{Field: "backing_format", Detail: fmt.Sprintf("is %s, but the image's is %s", opt.BackingFormat, format)}
	}
	root := &s.roots[0]
	opt.BackingFile = h.top.path
	if h.top.root != root {
		rel, err := filepath.Rel(root.path, h.top.host)
		if err != nil {
			return fmt.Errorf("%w: it is outside of the served directories", storage.ErrRefused)
		}
		opt.BackingFile = rel
	}
	// What the new image would name must be what it would get.
	found, err := s.follow(&source{root: root, host: filepath.Join(root.path, opt.Name)}, opt.BackingFile, format)
	if err != nil {
		return err
	}
	if id, err := found[0].identify(); err != nil || !id.SameFile(h.chain.bases[0].identity) {
		return fmt.Errorf("%w: it cannot be named from the served directory", storage.ErrRefused)
	}
	if !opt.HasSize {
		opt.Size = h.device.Size()
	}
	return nil
}

// CreateFile makes a new image at a path of the host, whatever it is called, and
// leaves no trace when it fails. The backing is what the options say: it is
// not looked up. An external data file is made in the same directory.
func CreateFile(ctx context.Context, path string, driver Driver, opt CreateOptions) error {
	if driver.Create == nil {
		return fmt.Errorf("%w: images of this format cannot be created", storage.ErrUnsupported)
	}
	dir, err := file.OpenDir(filepath.Dir(path))
	if err != nil {
		return err
	}
	opt.Name = filepath.Base(path)
	if err = opt.check(driver); err == nil {
		err = createFiles(ctx, dir, driver, opt)
	}
	return errors.Join(err, dir.Close())
}

// createFiles makes the files of an image. They get their names last, the
// image's after that of what it needs.
func createFiles(ctx context.Context, dir *file.Dir, driver Driver, opt CreateOptions) (err error) {
	if err := checkSpace(dir, &opt.CreateRequest); err != nil {
		return err
	}
	image, err := dir.Create(ctx, opt.Name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, discard(image)) }()
	var data *file.Draft
	if opt.DataFile != "" {
		if data, err = dir.Create(ctx, opt.DataFile); err != nil {
			return fmt.Errorf("data file %q: %w", opt.DataFile, err)
		}
		defer func() { err = errors.Join(err, discard(data)) }()
		opt.DataNode = storage.NewNode(opt.DataFile, data.File(), storage.NodeOptions{})
	}
	if err := driver.Create(ctx, storage.NewNode(opt.Name, image.File(), storage.NodeOptions{}), opt); err != nil {
		return err
	}
	if data == nil {
		return image.Publish(ctx)
	}
	if err := data.Publish(ctx); err != nil {
		return fmt.Errorf("data file %q: %w", opt.DataFile, err)
	}
	if err := image.Publish(ctx); err != nil {
		return errors.Join(err, dir.Remove(context.WithoutCancel(ctx), opt.DataFile))
	}
	return nil
}

// checkSpace refuses what is to be reserved and has no room, before all the room
// that there is has been taken from others.
func checkSpace(dir *file.Dir, r *CreateRequest) error {
	if r.Preallocation != "falloc" && r.Preallocation != "full" {
		return nil
	}
	available, err := dir.Available()
	if err == nil && r.Size > available {
		err = fmt.Errorf("%w: %d bytes are to be reserved, and %d are available", storage.ErrNoSpace, r.Size, available)
	}
	return err
}

// discard ends a draft: it removes one that has not been published, and closes
// one that has.
func discard(d *file.Draft) error {
	err := d.Discard()
	if closing := d.File().Close(); !errors.Is(closing, storage.ErrClosed) {
		err = errors.Join(err, closing)
	}
	return err
}
