package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
)

// filteredRanges asks for 4 KiB at a time of one raw file: as it is, and through
// filters that change nothing.
func filteredRanges(ctx context.Context, s *setup, results *table) error {
	raw, _, err := s.randomRaw(ctx)
	if err != nil {
		return err
	}
	config := filepath.Join(s.dir, "filters.yaml")
	text := fmt.Sprintf(`
images:
  - {name: plain, format: raw, node: {file: {path: images/%[1]s}}}
  - {name: nothing, format: raw, node: {file: {path: images/%[1]s}}, filters: [{policy: {}}]}
  - {name: counted, format: raw, node: {file: {path: images/%[1]s}}, filters: [{stats: {}}]}
  - {name: stacked, format: raw, node: {file: {path: images/%[1]s}}, filters: [{policy: {}}, {blocksize: {}}, {offset: {}}]}
`, raw)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return err
	}
	e, err := s.serveFresh(ctx, "--config", config)
	if err != nil {
		return err
	}
	defer e.stop()
	images := []struct{ name, what string }{
		{"plain", ""}, {"nothing", "a filter that does nothing"}, {"counted", "stats"}, {"stacked", "policy, blocksize and offset"},
	}
	sides := make([]side, len(images))
	for i, image := range images {
		sides[i] = side{image.name, []string{raw}, func(ctx context.Context) (float64, error) {
			return s.ranges(ctx, e.data(image.name), s.diskSize())
		}}
	}
	v, err := s.race(ctx, "4 KiB ranges through filters", sides...)
	if err != nil {
		return err
	}
	for i, image := range images[1:] {
		goal := 0.97
		if image.name == "stacked" {
			goal = 0.9
		}
		results.add("random 4 KiB ranges of raw through "+image.what, rate(v[i+1]), "no filter "+rate(v[0]), v[i+1]/v[0], goal)
	}
	return nil
}
