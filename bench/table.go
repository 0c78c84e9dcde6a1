package main

import (
	"fmt"
	"io"
	"strings"
)

// A table collects results and prints them as Markdown.
type table struct{ rows [][]string }

var header = []string{"work", "extentd", "peer", "ratio", "goal", "met"}

// add puts in one comparison. The ratio is one of speeds: more than 1 means
// that extentd is faster than the peer.
func (t *table) add(work, ours, peer string, ratio, goal float64) {
	met := "yes"
	if ratio < goal {
		met = "NO"
	}
	t.rows = append(t.rows, []string{work, ours, peer, fmt.Sprintf("%.2f", ratio), fmt.Sprintf(">= %.2f", goal), met})
}

// atMost puts in a quantity that has an upper bound.
func (t *table) atMost(work, ours, peer string, value, goal float64) {
	met := "yes"
	if value > goal {
		met = "NO"
	}
	t.rows = append(t.rows, []string{work, ours, peer, fmt.Sprintf("%.2f", value), fmt.Sprintf("<= %.2f", goal), met})
}

func (t *table) print(w io.Writer) {
	widths := make([]int, len(header))
	for _, row := range append([][]string{header}, t.rows...) {
		for i, cell := range row {
			widths[i] = max(widths[i], len(cell))
		}
	}
	line := func(row []string, fill string) {
		cells := make([]string, len(row))
		for i, cell := range row {
			cells[i] = cell + strings.Repeat(fill, widths[i]-len(cell))
		}
		_, _ = fmt.Fprintf(w, "| %s |\n", strings.Join(cells, " | "))
	}
	line(header, " ")
	line(make([]string, len(header)), "-")
	for _, row := range t.rows {
		line(row, " ")
	}
}

// seconds, rate and size write quantities for people.
func seconds(v float64) string {
	switch {
	case v < 0.001:
		return fmt.Sprintf("%.0f us", v*1e6)
	case v < 0.1:
		return fmt.Sprintf("%.1f ms", v*1e3)
	}
	return fmt.Sprintf("%.2f s", v)
}

func rate(v float64) string { return fmt.Sprintf("%.1fk/s", v/1000) }

func size(bytes int64) string { return fmt.Sprintf("%d MiB", bytes>>20) }
