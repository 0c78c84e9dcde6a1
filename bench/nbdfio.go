package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
)

// A fioReport is what fio says of one job.
type fioReport struct {
	Read, Write struct {
		IOPS float64 `json:"iops"`
	}
	Error int `json:"error"`
}

// fioReport runs a job of fio's nbd engine.
func (s *setup) fioReport(ctx context.Context, uri string, args ...string) (fioReport, error) {
	args = append([]string{"--name=job", "--ioengine=nbd", "--uri=" + uri, "--output-format=json", "--randrepeat=0"}, args...)
	cmd := exec.CommandContext(ctx, "fio", args...)
	cmd.Dir = s.dir
	out, err := cmd.Output()
	if err != nil {
		return fioReport{}, fmt.Errorf("fio: %w\n%s", err, out)
	}
	var report struct {
		Jobs []fioReport `json:"jobs"`
	}
	if at := bytes.IndexByte(out, '{'); at > 0 {
		out = out[at:] // it may complain before
	}
	if err := json.Unmarshal(out, &report); err != nil || len(report.Jobs) != 1 || report.Jobs[0].Error != 0 {
		return fioReport{}, fmt.Errorf("fio says %.500s (%w)", out, err)
	}
	return report.Jobs[0], nil
}
