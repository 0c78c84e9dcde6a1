package test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
)

// qemuImg runs qemu-img in a directory and returns what it prints.
func qemuImg(dir string, args ...string) ([]byte, error) {
	cmd := exec.Command("qemu-img", args...)
	cmd.Dir = dir
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("qemu-img %s: %w\n%s", strings.Join(args, " "), err, stderr.String())
	}
	return out, nil
}

var converted atomic.Int64 // number of files that convert has made

// convert returns the path of a raw copy of an image, made by qemu-img, in the
// scratch directory.
func convert(dir, file string) (string, error) {
	path := filepath.Join(scratch, fmt.Sprintf("converted-%d.raw", converted.Add(1)))
	_, err := qemuImg(dir, "convert", "-t", "unsafe", "-f", formatOf(file), "-O", "raw", file, path)
	return path, err
}

// qemuRead is what QEMU reads in a range of a qcow2 image. The range is a
// multiple of 512 bytes.
func qemuRead(t testing.TB, dir, file string, off, length int64) []byte {
	t.Helper()
	path := filepath.Join(scratch, fmt.Sprintf("range-%d.raw", converted.Add(1)))
	defer func() { _ = os.Remove(path) }()
	source := fmt.Sprintf("driver=raw,offset=%d,size=%d,file.driver=qcow2,file.file.driver=file,file.file.filename=%s", off, length, file)
	if _, err := qemuImg(dir, "convert", "-t", "unsafe", "-O", "raw", "--image-opts", source, path); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// A span is one line of a map, in the terms that QEMU and extentd share.
type span struct {
	Start, Length int64
	Depth         int
	Present, Zero bool
	Offset        int64 // -1: none
}

func (s span) end() int64 { return s.Start + s.Length }

// follows reports whether the two say the same of adjacent ranges.
func (s span) follows(before span) bool {
	return before.end() == s.Start && before.Depth == s.Depth && before.Present == s.Present && before.Zero == s.Zero &&
		(before.Offset < 0 && s.Offset < 0 || before.Offset >= 0 && before.Offset+before.Length == s.Offset)
}

// merge joins neighbours that say the same.
func merge(spans []span) []span {
	var out []span
	for _, s := range spans {
		if n := len(out); n > 0 && s.follows(out[n-1]) {
			out[n-1].Length += s.Length
			continue
		}
		out = append(out, s)
	}
	return out
}

// clip is what a map says of [lo, hi).
func clip(spans []span, lo, hi int64) []span {
	var out []span
	for _, s := range spans {
		start, end := max(s.Start, lo), min(s.end(), hi)
		if start >= end {
			continue
		}
		if s.Offset >= 0 {
			s.Offset += start - s.Start
		}
		s.Start, s.Length = start, end-start
		out = append(out, s)
	}
	return out
}

// A mapLine is one element of `qemu-img map --output=json`, and of ours.
type mapLine struct {
	Start      int64  `json:"start"`
	Length     int64  `json:"length"`
	Depth      int    `json:"depth"`
	Present    bool   `json:"present"`
	Zero       bool   `json:"zero"`
	Data       bool   `json:"data"`
	Compressed *bool  `json:"compressed"` // QEMU 8.2
	Offset     *int64 `json:"offset"`
}

func (l mapLine) span() span {
	s := span{Start: l.Start, Length: l.Length, Depth: l.Depth, Present: l.Present, Zero: l.Zero, Offset: -1}
	if l.Offset != nil {
		s.Offset = *l.Offset
	}
	return s
}

func spansOf(lines []mapLine) []span {
	spans := make([]span, len(lines))
	for i, l := range lines {
		spans[i] = l.span()
	}
	return spans
}

// qemuMap is `qemu-img map --output=json` of an image.
func qemuMap(t testing.TB, dir, file string, args ...string) []mapLine {
	t.Helper()
	args = append([]string{"map", "--output=json"}, args...)
	if file != "" {
		args = append(args, "-f", formatOf(file), file)
	}
	out, err := qemuImg(dir, args...)
	if err != nil {
		t.Fatal(err)
	}
	var lines []mapLine
	if err := json.Unmarshal(out, &lines); err != nil {
		t.Fatalf("qemu-img map: %v\n%s", err, out)
	}
	return lines
}

// qemuInfo is `qemu-img info --output=json` of an image.
func qemuInfo(t testing.TB, dir, file string) map[string]any {
	t.Helper()
	out, err := qemuImg(dir, "info", "--output=json", "-f", formatOf(file), file)
	if err != nil {
		t.Fatal(err)
	}
	var info map[string]any
	if err := json.Unmarshal(out, &info); err != nil {
		t.Fatalf("qemu-img info: %v\n%s", err, out)
	}
	return info
}
