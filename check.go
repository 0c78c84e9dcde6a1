package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage"
)

// What qemu-img check exits with. What else fails exits with 1.
const (
	exitCorruptions = 2
	exitLeaks       = 3
	exitUnsupported = 63
)

// An unsupportedCheck says that there is nothing to check.
type unsupportedCheck struct{ error }

func (e *unsupportedCheck) Unwrap() error { return e.error }

func checkCommand() *cobra.Command {
	var f localFlags
	var repair string
	cmd := &cobra.Command{
		Use:   "check [-r leaks|all] FILE",
		Short: "Check an image's metadata, and repair it, as qemu-img check does",
		Long: "Check an image's metadata, and repair it, as qemu-img check does.\n\n" +
			"Exit codes: 0 clean, 1 the check failed, 2 corruptions, 3 only leaked clusters,\n" +
			"63 images of this format have nothing to check.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			asJSON, err := f.json()
			if err != nil {
				return err
			}
			var result error
			err = f.withService(args[0], true, func(svc *service.Service, image string) error {
				report, err := svc.Check(cmd.Context(), image, repair)
				if errors.Is(err, storage.ErrUnsupported) {
					return &unsupportedCheck{err}
				}
				if err != nil {
					return err
				}
				out := imageCheck{Filename: args[0], Format: report.Format, report: report}
				result = out.result()
				return out.write(cmd.OutOrStdout(), cmd.ErrOrStderr(), asJSON)
			})
			if err != nil {
				return err
			}
			return result
		},
	}
	f.registerConfig(cmd)
	cmd.Flags().StringVarP(&repair, "repair", "r", service.RepairNone, "repair `WHAT`: leaks or all")
	return cmd
}

// imageCheck has the members of QEMU's ImageCheck, in its order.
type imageCheck struct {
	ImageEnd           int64  `json:"image-end-offset,omitempty"`
	CorruptionsFixed   int64  `json:"corruptions-fixed,omitempty"`
	Corruptions        int64  `json:"corruptions,omitempty"`
	LeaksFixed         int64  `json:"leaks-fixed,omitempty"`
	TotalClusters      int64  `json:"total-clusters,omitempty"`
	CheckErrors        int64  `json:"check-errors"`
	FragmentedClusters int64  `json:"fragmented-clusters,omitempty"`
	CompressedClusters int64  `json:"compressed-clusters,omitempty"`
	Leaks              int64  `json:"leaks,omitempty"`
	AllocatedClusters  int64  `json:"allocated-clusters,omitempty"`
	Filename           string `json:"filename"`
	Format             string `json:"format"`

	report *service.CheckReport
}

// write tells what was found, and what is wrong beside it.
func (c *imageCheck) write(stdout, stderr io.Writer, asJSON bool) error {
	r := c.report
	for _, text := range r.Errors {
		if _, err := fmt.Fprintln(stderr, printable(text)); err != nil {
			return err
		}
	}
	if !asJSON {
		return c.print(stdout)
	}
	c.ImageEnd, c.TotalClusters, c.AllocatedClusters = r.ImageEnd, r.TotalClusters, r.AllocatedClusters
	c.FragmentedClusters, c.CompressedClusters = r.FragmentedClusters, r.CompressedClusters
	c.Corruptions, c.CorruptionsFixed, c.Leaks, c.LeaksFixed = r.Corruptions, r.CorruptionsFixed, r.Leaks, r.LeaksFixed
	text, err := json.MarshalIndent(c, "", "    ")
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(stdout, "%s\n", text)
	return err
}

// print writes what qemu-img check does for people.
func (c *imageCheck) print(w io.Writer) error {
	var b bytes.Buffer
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	r := c.report
	if r.CorruptionsFixed > 0 || r.LeaksFixed > 0 {
		line("The following inconsistencies were found and repaired:\n\n    %d leaked clusters\n    %d corruptions\n", r.LeaksFixed, r.CorruptionsFixed)
		line("Double checking the fixed image now...")
	}
	if r.Corruptions == 0 && r.Leaks == 0 {
		line("No errors were found on the image.")
	}
	if r.Corruptions > 0 {
		line("\n%d errors were found on the image.", r.Corruptions)
		line("Data may be corrupted, or further writes to the image may corrupt it.")
	}
	if r.Leaks > 0 {
		line("\n%d leaked clusters were found on the image.", r.Leaks)
		line("This means waste of disk space, but no harm to data.")
	}
	if r.TotalClusters > 0 && r.AllocatedClusters > 0 {
		percent := func(n, of int64) float64 { return float64(n) * 100 / float64(of) }
		line("%d/%d = %.2f%% allocated, %.2f%% fragmented, %.2f%% compressed clusters", r.AllocatedClusters, r.TotalClusters,
			percent(r.AllocatedClusters, r.TotalClusters), percent(r.FragmentedClusters, r.AllocatedClusters), percent(r.CompressedClusters, r.AllocatedClusters))
	}
	if r.ImageEnd > 0 {
		line("Image end offset: %d", r.ImageEnd)
	}
	_, err := w.Write(b.Bytes())
	return err
}

// result is nil for an image without errors.
func (c *imageCheck) result() error {
	switch {
	case c.report.Corruptions > 0:
		return exitCode(exitCorruptions)
	case c.report.Leaks > 0:
		return exitCode(exitLeaks)
	}
	return nil
}
