package main

import (
	"strings"
	"testing"

	"github.com/knadh/koanf/parsers/yaml"
)

// FuzzImages: whatever stands in the file, it is a finding or a graph.
func FuzzImages(f *testing.F) {
	for _, seed := range []string{
		`images: [{name: a, format: raw, node: {null: {size: 1TiB}}, filters: [{stats: {}}, {rate: {read: 1MiB}}]}]`,
		`images: [{name: a, node: {file: {path: a.raw, direct: true}}, filters: [{offset: {offset: 4KiB, length: 1EiB}}, {swab: {bits: 16}}]}]`,
		`images: [{name: a, format: qcow2, node: {http: {url: "http://u:p@h/f?q", headers: {a: b}}}, filters: [{retry: {delay: 1h}}, {cache: {path: x, size: 2EiB}}]}]`,
		`images: [{name: 2001-01-01, node: {1: {}, ~: {}}, filters: [~, {error: {rate: .nan, operations: [~]}}, {policy: {minimum: -1}}]}]`,
		"images: [{\"a\\nb\": 1, node: {\"\": 5}}]",
		`{images: [{<<: {name: a}, node: {mem: {size: 0x10, max: 1_000}}}]}`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		all, err := yaml.Parser().Unmarshal([]byte(text))
		if err != nil {
			return
		}
		images, err := decodeImages("x.yaml", all["images"])
		if err != nil {
			for line := range strings.Lines(err.Error()) {
				if !strings.HasPrefix(line, "images") {
					t.Errorf("a finding without a path: %s", line)
				}
			}
			return
		}
		for i := range images {
			if _, err := images[i].spec(wiring{scratch: tempScratch}); err != nil {
				t.Error(err)
			}
		}
	})
}
