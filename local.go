package main

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

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
	config      string // the argument is the name of an image of this file
}

func (f *localFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.output, "output", "human", "`FORMAT` of the output: human or json")
	cmd.Flags().StringVarP(&f.format, "format", "f", "", "`FORMAT` of the file: qcow2 or raw (default: by its extension)")
	cmd.Flags().StringArrayVar(&f.backingDirs, "backing-dir", nil, "images may name backing and data files in `DIR`, beside the file's own directory; may be repeated")
}

// registerConfig is for the verbs that know images by name too.
func (f *localFlags) registerConfig(cmd *cobra.Command) {
	f.register(cmd)
	cmd.Flags().StringVar(&f.config, "config", "", "open the image that a server with the YAML `FILE` would serve under the name that is given")
}

// json reports whether the output is JSON.
func (f *localFlags) json() (bool, error) {
	if f.output != "human" && f.output != "json" {
		return false, fmt.Errorf("output is %q, must be human or json", f.output)
	}
	return f.output == "json", nil
}

// withImage opens the image that is named, without what backs it if topOnly, for
// as long as use runs.
func (f *localFlags) withImage(cmd *cobra.Command, named string, topOnly bool, use func(*service.Handle) error) error {
	return f.withService(named, topOnly, func(svc *service.Service, image string) error {
		h, err := svc.Acquire(cmd.Context(), image)
		if err != nil {
			return err
		}
		defer h.Release()
		return use(h)
	})
}

// withService serves what is named, a file or an image of the configuration, to
// use, and says under which name.
func (f *localFlags) withService(named string, topOnly bool, use func(svc *service.Service, image string) error) (err error) {
	open, image := f.fileOptions, localImage
	if f.config != "" {
		open, image = f.configOptions, named
	}
	opt, err := open(named)
	if err == nil {
		opt.TopOnly = topOnly
		err = serveLocally(opt, image, use)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", named, err)
	}
	return nil
}

func serveLocally(opt service.Options, image string, use func(svc *service.Service, image string) error) error {
	svc, err := service.New(opt)
	if err != nil {
		return err
	}
	return errors.Join(use(svc, image), svc.Close())
}

// fileOptions serve the file at path as localImage.
func (f *localFlags) fileOptions(path string) (service.Options, error) {
	drivers := formats()
	if f.format == "" {
		f.format = service.FormatOf(path, drivers)
	}
	if _, known := drivers[f.format]; !known {
		if f.format == "" {
			return service.Options{}, errors.New("the name does not tell the format: give --format")
		}
		return service.Options{}, fmt.Errorf("unknown format %q", f.format)
	}
	return service.Options{
		Images:      []service.ImageSpec{{Name: localImage, Path: path, Format: f.format}},
		BackingDirs: slices.Concat([]string{filepath.Dir(path)}, f.backingDirs),
		Formats:     drivers,
		Blocksize:   blocksizeFilter{}.filter(wiring{}).Open,
	}, nil
}

// configOptions serve what a server with the configuration file would, except
// that they leave alone what such a server may have in use: its state, and the
// scratch files of filters.
func (f *localFlags) configOptions(string) (service.Options, error) {
	if f.format != "" {
		return service.Options{}, errors.New("--format is for files: an image of a configuration has one")
	}
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	configFlags(flags)
	if err := flags.Set("config", f.config); err != nil {
		return service.Options{}, err
	}
	config, err := loadConfig(flags, nil)
	if err != nil {
		return service.Options{}, err
	}
	opt, err := config.service(wiring{log: slog.New(slog.DiscardHandler), scratch: tempScratch})
	opt.BackingDirs = slices.Concat(opt.BackingDirs, f.backingDirs)
	return opt, err
}

// localPaths tells where nodes of the image are, the way the user named the
// file: relative if that was, and inside the working directory.
func localPaths(path string, h *service.Handle) func(*storage.Node) string {
	base, err := filepath.Abs(".")
	return func(node *storage.Node) string {
		host := h.Path(node)
		if filepath.Base(host) != filepath.Base(node.Name()) { // of a filter, where it is not where it is in the file
			return node.Name()
		}
		if err != nil || filepath.IsAbs(path) {
			return host
		}
		if rel, err := filepath.Rel(base, host); err == nil && filepath.IsLocal(rel) {
			return rel
		}
		return host
	}
}
