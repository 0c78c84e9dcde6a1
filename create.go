package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage"
)

// createFlags are those of the verb create.
type createFlags struct {
	localFlags
	options       []string
	backing       string
	backingFormat string
}

func createCommand() *cobra.Command {
	var f createFlags
	cmd := &cobra.Command{
		Use:   "create -f FORMAT [-o OPTION=VALUE,...] [-b FILE -F FORMAT] FILE [SIZE]",
		Short: "Make a new image, as qemu-img create does",
		Long: "Make a new image, as qemu-img create does, except that a file that exists is never\n" +
			"overwritten. SIZE is in bytes, or has a suffix of k, M, G, T, P or E.\n\n" +
			"Options of qcow2: cluster_size, refcount_bits, compat (1.1 or 0.10), compression_type\n" +
			"(zlib or zstd), extended_l2, lazy_refcounts, preallocation (off, metadata, falloc or full),\n" +
			"backing_file, backing_fmt, data_file (a new file in the same directory), data_file_raw, size.\n" +
			"Options of raw: preallocation (off, falloc or full), size.",
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			asJSON, err := f.json()
			if err != nil {
				return err
			}
			opt, err := f.parse(cmd, args)
			if err == nil {
				err = service.CreateFile(cmd.Context(), args[0], formats()[opt.Format], opt)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			return printCreated(cmd, args[0], &opt, asJSON)
		},
	}
	f.register(cmd)
	cmd.Flags().StringArrayVarP(&f.options, "options", "o", nil, "`OPTION=VALUE`,... of the format; may be repeated")
	cmd.Flags().StringVarP(&f.backing, "backing", "b", "", "the image is a change of `FILE`, named as seen from the new image")
	cmd.Flags().StringVarP(&f.backingFormat, "backing-format", "F", "", "`FORMAT` of the backing (default: by its extension)")
	return cmd
}

// parse puts flags, options and arguments together, and looks at the backing.
func (f *createFlags) parse(cmd *cobra.Command, args []string) (service.CreateOptions, error) {
	var opt service.CreateOptions
	drivers := formats()
	if opt.Format = f.format; opt.Format == "" {
		opt.Format = service.FormatOf(args[0], drivers)
	}
	if _, known := drivers[opt.Format]; !known {
		return opt, fmt.Errorf("unknown format %q: give -f qcow2 or raw", opt.Format)
	}
	for _, list := range f.options {
		for _, field := range strings.Split(list, ",") {
			key, value, _ := strings.Cut(field, "=")
			if err := f.set(&opt.CreateRequest, key, value); err != nil {
				return opt, fmt.Errorf("option %q: %w", field, err)
			}
		}
	}
	if len(args) > 1 {
		size, err := parseSize(args[1])
		if err != nil {
			return opt, err
		}
		opt.Size, opt.HasSize = size, true
	}
	if f.backing == "" {
		if f.backingFormat != "" {
			return opt, errors.New("the format of a backing is given, but no backing")
		}
		return opt, nil
	}
	if !drivers[opt.Format].Children {
		return opt, fmt.Errorf("%w: an image of format %s has no backing", storage.ErrInvalid, opt.Format)
	}
	return opt, f.lookAtBacking(cmd, args[0], &opt)
}

// lookAtBacking opens the backing, and fills in what of it stands in the image.
func (f *createFlags) lookAtBacking(cmd *cobra.Command, path string, opt *service.CreateOptions) error {
	host := f.backing
	if !filepath.IsAbs(host) {
		host = filepath.Join(filepath.Dir(path), host)
	}
	flags := localFlags{format: f.backingFormat, backingDirs: f.backingDirs}
	return flags.withImage(cmd, host, false, func(h *service.Handle) error {
		opt.Backing, opt.BackingFile = f.backing, f.backing
		opt.BackingFormat = h.LayerFormat(0)
		if !opt.HasSize {
			opt.Size = h.Device().Size()
		}
		return nil
	})
}

// set reads one option.
func (f *createFlags) set(r *service.CreateRequest, key, value string) (err error) {
	switch key {
	case "size":
		r.Size, err = parseSize(value)
		r.HasSize = true
	case "cluster_size":
		r.ClusterSize, err = parseSize(value)
	case "refcount_bits":
		r.RefcountBits, err = strconv.Atoi(value)
	case "compat":
		r.Compat = value
	case "compression_type":
		r.CompressionType = value
	case "preallocation":
		r.Preallocation = value
	case "backing_file":
		f.backing = value
	case "backing_fmt":
		f.backingFormat = value
	case "data_file":
		r.DataFile = value
	case "extended_l2":
		r.ExtendedL2, err = parseSwitch(value)
	case "lazy_refcounts":
		r.LazyRefcounts, err = parseSwitch(value)
	case "data_file_raw":
		r.DataFileRaw, err = parseSwitch(value)
	default:
		return errors.New("there is no such option")
	}
	return err
}

func parseSwitch(text string) (bool, error) {
	switch text {
	case "on":
		return true, nil
	case "off":
		return false, nil
	}
	return false, errors.New("want on or off")
}

// parseSize reads a size as qemu-img does: a number, perhaps with a fraction, and
// a binary unit.
func parseSize(text string) (int64, error) {
	number, shift := text, 0
	if text != "" {
		unit := strings.IndexByte("bkmgtpe", text[len(text)-1]|0x20)
		if unit >= 0 {
			number, shift = text[:len(text)-1], 10*unit
		}
	}
	bad := fmt.Errorf("%w: size %q, want a number and perhaps k, M, G, T, P or E", storage.ErrInvalid, text)
	whole, fraction, hasFraction := strings.Cut(number, ".")
	n, err := strconv.ParseUint(whole, 10, 63)
	if err != nil || n > uint64(storage.MaxSize)>>shift {
		return 0, bad
	}
	size := int64(n) << shift
	if hasFraction {
		part, err := strconv.ParseFloat("0."+fraction, 64)
		if err != nil || strings.ContainsAny(fraction, "eE+-_xX") || shift == 0 {
			return 0, bad
		}
		size += int64(part * float64(int64(1)<<shift))
	}
	if size > storage.MaxSize {
		return 0, bad
	}
	return size, nil
}

// printCreated says what was made.
func printCreated(cmd *cobra.Command, path string, opt *service.CreateOptions, asJSON bool) error {
	out := cmd.OutOrStdout()
	if asJSON {
		size := opt.Size
		if opt.Format == "qcow2" {
			size = (size + 511) &^ 511 // as it is in the image
		}
		text, err := json.MarshalIndent(struct {
			VirtualSize int64  `json:"virtual-size"`
			Filename    string `json:"filename"`
			Format      string `json:"format"`
		}{size, path, opt.Format}, "", "    ")
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(out, "%s\n", text)
		return err
	}
	_, err := fmt.Fprintf(out, "Formatting '%s', fmt=%s%s\n", path, opt.Format, created(opt))
	return err
}

// created are the options in QEMU's order, defaults filled in as it does.
func created(opt *service.CreateOptions) string {
	var b strings.Builder
	add := func(key string, value any, is bool) {
		if is {
			fmt.Fprintf(&b, " %s=%v", key, value)
		}
	}
	onOff := map[bool]string{true: "on", false: "off"}
	if opt.Format != "qcow2" {
		add("size", opt.Size, true)
		add("preallocation", opt.Preallocation, opt.Preallocation != "")
		return b.String()
	}
	add("cluster_size", cmp.Or(opt.ClusterSize, 65536), true)
	add("extended_l2", onOff[opt.ExtendedL2], true)
	add("preallocation", opt.Preallocation, opt.Preallocation != "")
	add("compression_type", cmp.Or(opt.CompressionType, "zlib"), true)
	add("size", opt.Size, true)
	add("compat", opt.Compat, opt.Compat != "")
	add("backing_file", printable(opt.BackingFile), opt.BackingFile != "")
	add("backing_fmt", opt.BackingFormat, opt.BackingFormat != "")
	add("data_file", opt.DataFile, opt.DataFile != "")
	add("data_file_raw", onOff[opt.DataFileRaw], opt.DataFileRaw)
	add("lazy_refcounts", onOff[opt.LazyRefcounts], true)
	add("refcount_bits", cmp.Or(opt.RefcountBits, 16), true)
	return b.String()
}
