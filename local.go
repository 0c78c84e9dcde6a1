package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage"
)

// localImage is the name under which a local verb opens its file.
const localImage = "image"

// localFlags are the flags of the verbs that read a file without a server.
type localFlags struct {
	output      string
	format      string
	backingDirs []string
}

func (f *localFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.output, "output", "human", "`FORMAT` of the output: human or json")
	cmd.Flags().StringVarP(&f.format, "format", "f", "", "`FORMAT` of the file: qcow2 or raw (default: by its extension)")
	cmd.Flags().StringArrayVar(&f.backingDirs, "backing-dir", nil, "images may name backing and data files in `DIR`, beside the file's own directory; may be repeated")
}

// json reports whether the output is JSON.
func (f *localFlags) json() (bool, error) {
	if f.output != "human" && f.output != "json" {
		return false, fmt.Errorf("output is %q, must be human or json", f.output)
	}
	return f.output == "json", nil
}

// withImage opens the file at path, without what backs it if topOnly, for as
// long as use runs.
func (f *localFlags) withImage(cmd *cobra.Command, path string, topOnly bool, use func(*service.Handle) error) error {
	return f.withService(path, topOnly, func(svc *service.Service) error {
		h, err := svc.Acquire(cmd.Context(), localImage)
		if err != nil {
			return err
		}
		defer h.Release()
		return use(h)
	})
}

// withService serves the file at path as localImage to use.
func (f *localFlags) withService(path string, topOnly bool, use func(*service.Service) error) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("%s: %w", path, err)
		}
	}()
	drivers := formats()
	if f.format == "" {
		f.format = service.FormatOf(path, drivers)
	}
	if _, known := drivers[f.format]; !known {
		if f.format == "" {
			return errors.New("the name does not tell the format: give --format")
		}
		return fmt.Errorf("unknown format %q", f.format)
	}
	svc, err := service.New(service.Options{
		Images:      []service.ImageSpec{{Name: localImage, Path: path, Format: f.format}},
		BackingDirs: slices.Concat([]string{filepath.Dir(path)}, f.backingDirs),
		Formats:     drivers,
		TopOnly:     topOnly,
	})
	if err != nil {
		return err
	}
	return errors.Join(use(svc), svc.Close())
}

// localPaths tells where nodes of the image are, the way the user named the
// file: relative if that was, and inside the working directory.
func localPaths(path string, h *service.Handle) func(*storage.Node) string {
	base, err := filepath.Abs(".")
	return func(node *storage.Node) string {
		host := h.Path(node)
		if err != nil || filepath.IsAbs(path) {
			return host
		}
		if rel, err := filepath.Rel(base, host); err == nil && filepath.IsLocal(rel) {
			return rel
		}
		return host
	}
}
