package main

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// keysOf are the keys that the options of a kind have.
func keysOf(options any) []string {
	var keys []string
	of := reflect.TypeOf(options).Elem()
	for i := range of.NumField() {
		keys = append(keys, keyOf(of.Field(i)))
	}
	return keys
}

// kindKeys are the keys of all kinds, by the folder of their pages.
func kindKeys() map[string]map[string][]string {
	out := map[string]map[string][]string{"nodes": {}, "filters": {}}
	for kind, options := range nodeKinds() {
		out["nodes"][kind] = keysOf(options())
	}
	for kind, options := range filterKinds() {
		out["filters"][kind] = keysOf(options())
	}
	return out
}

// TestKindsAreDocumented: each kind is in the table of docs/graphs.md with its
// keys, and none else is, and each has a page that tells of each key.
func TestKindsAreDocumented(t *testing.T) {
	overview, err := os.ReadFile("docs/graphs.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := regexp.MustCompile(`(?m)^\| \[(\w+)\]\((\w+)/(\w+)\.md\) \|.*\| ([^|]*)\|$`).FindAllStringSubmatch(string(overview), -1)
	listed := map[string]map[string][]string{"nodes": {}, "filters": {}}
	for _, row := range rows {
		if row[1] != row[3] {
			t.Errorf("%s leads to the page of %s", row[1], row[3])
		}
		var keys []string
		for _, key := range regexp.MustCompile("`(\\w+)`").FindAllStringSubmatch(row[4], -1) {
			keys = append(keys, key[1])
		}
		listed[row[2]][row[1]] = keys
	}
	for folder, kinds := range kindKeys() {
		for kind, keys := range kinds {
			if got, is := listed[folder][kind]; !is || !slices.Equal(got, keys) {
				t.Errorf("docs/graphs.md has %s with %v, want %v", kind, got, keys)
			}
			page := filepath.Join("docs", folder, kind+".md")
			text, err := os.ReadFile(page)
			if err != nil {
				t.Error(err)
			}
			for _, key := range keys {
				if !strings.Contains(string(text), "`"+key+"`") {
					t.Errorf("%s does not tell of `%s`", page, key)
				}
			}
			delete(listed[folder], kind)
		}
		for kind := range listed[folder] {
			t.Errorf("docs/graphs.md has %s, which is no kind", kind)
		}
	}
}

// whole makes a configuration of an example that may be a part of one.
func whole(example string) string {
	first, _, _ := strings.Cut(example, ":")
	switch {
	case first == "images" || first == "dir":
		return example
	case first == "- name":
		return "images:\n" + example
	case first == "name":
		example = strings.ReplaceAll(strings.TrimSpace(example), "\n", "\n    ")
		return "images:\n  - " + example + "\n"
	case !strings.Contains(example, "node:"):
		example += "node: {null: {size: 1TiB}}\n"
	}
	return "images:\n  - name: example\n    format: raw\n    " + strings.ReplaceAll(strings.TrimSpace(example), "\n", "\n    ") + "\n"
}

// TestPagesLoad: the examples of all pages are configurations that load.
func TestPagesLoad(t *testing.T) {
	pages, err := filepath.Glob("docs/*/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range append(pages, "docs/graphs.md", "docs/operating.md") {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, example := range regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(string(text), -1) {
			if strings.HasPrefix(example[1], "containers:") { // a pod
				continue
			}
			if _, err := imagesOf(t, t.TempDir(), whole(example[1])); err != nil {
				t.Errorf("%s: %v", page, err)
			}
		}
	}
}
