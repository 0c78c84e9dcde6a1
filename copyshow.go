package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"

	"github.com/extentd/extentd/client/transfer"
)

// A copyBar shows how far a copy is. The zero value shows nothing.
type copyBar struct {
	bar     *progressbar.ProgressBar
	w       io.Writer
	what    string
	skipped int64
}

// newBar is one on a terminal, or where it is asked for.
func (f *copyFlags) newBar(w io.Writer, size int64) *copyBar {
	file, isFile := w.(*os.File)
	terminal := isFile && term.IsTerminal(int(file.Fd()))
	if f.noProgress || !terminal && !f.progress {
		return &copyBar{}
	}
	return &copyBar{what: "copied", w: w, bar: progressbar.NewOptions64(max(size, 1),
		progressbar.OptionSetWriter(w),
		progressbar.OptionShowBytes(true),
		progressbar.OptionShowTotalBytes(true),
		progressbar.OptionUseIECUnits(true),
		progressbar.OptionSetPredictTime(true),
		progressbar.OptionSetWidth(20),
		progressbar.OptionThrottle(200*time.Millisecond),
		progressbar.OptionSetDescription("copied"),
	)}
}

func (b *copyBar) update(p transfer.Progress) {
	if b.bar == nil {
		return
	}
	if p.Skipped != b.skipped {
		b.skipped = p.Skipped
		b.bar.Describe(fmt.Sprintf("%s (holes skipped: %s)", b.what, size(p.Skipped)))
	}
	_ = b.bar.Set64(p.Done) // to standard error
}

func (b *copyBar) verifying() {
	if b.bar != nil {
		b.what, b.skipped = "verified", -1
		b.bar.Reset()
	}
}

func (b *copyBar) finish() {
	if b.bar != nil {
		_ = b.bar.Finish() // likewise
		b.stop()
	}
}

// stop ends the line.
func (b *copyBar) stop() {
	if b.bar != nil {
		_ = b.bar.Exit()
		_, _ = fmt.Fprintln(b.w)
	}
}

// copyReport is the result in JSON.
type copyReport struct {
	Source   string  `json:"source"`
	Target   string  `json:"target"`
	Size     int64   `json:"size"`
	Copied   int64   `json:"copied"`
	Skipped  int64   `json:"skipped"`
	Seconds  float64 `json:"seconds"`
	Checksum string  `json:"checksum,omitempty"`
	Verified bool    `json:"verified"`
	Resumed  bool    `json:"resumed"`
}

// print says what was copied.
func (f *copyFlags) print(w io.Writer, c *copying, r *transfer.Result, took time.Duration) error {
	if f.output == "json" {
		text, err := json.MarshalIndent(copyReport{
			Source: c.state.Source.Name, Target: c.state.Target.Name,
			Size: r.Size, Copied: r.Copied, Skipped: r.Skipped, Seconds: took.Seconds(),
			Checksum: r.Sum, Verified: f.verify, Resumed: c.resumed,
		}, "", "    ")
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(w, "%s\n", text)
		return err
	}
	line := fmt.Sprintf("copied %s of %s, skipped %s of zeros, in %.1f s", size(r.Copied), size(r.Size), size(r.Skipped), took.Seconds())
	if c.resumed {
		line += ", with an earlier copy that was resumed"
	}
	if f.verify {
		line += ", verified"
	}
	if r.Sum != "" {
		line += "\n" + r.Sum
	}
	_, err := fmt.Fprintln(w, line)
	return err
}
