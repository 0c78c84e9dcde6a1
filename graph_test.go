package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/extentd/extentd/service"
)

// imagesOf loads a configuration file that lies in dir.
func imagesOf(t *testing.T, dir, text string) (Config, error) {
	t.Helper()
	path := filepath.Join(dir, "x.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := configure(t, "--config", path)
	if err != nil && !strings.HasPrefix(err.Error(), "config file "+path+": ") {
		t.Errorf("%v does not name the file", err)
	}
	return c, err
}

// TestBadImages: every finding names its key by its path.
func TestBadImages(t *testing.T) {
	const one = `images: [{name: a, format: raw, `
	filter := func(text string) string {
		return one + `node: {"null": {size: 1MiB}}, filters: [{stats: {}}, ` + text + `]}]`
	}
	node := func(text string) string { return one + `node: ` + text + `}]` }
	for name, test := range map[string]struct{ config, want string }{
		"no list":             {`images: {a: b}`, `images: a map must be a list`},
		"nothing":             {`images:`, `images: has no value`},
		"no map":              {`images: [a]`, `images[0]: "a" must be a map`},
		"unknown key":         {one + `nide: {}, node: {"null": {size: 1}}}]`, `images[0].nide: is an unknown key, must be one of name, format, node, filters, backing, readonly`},
		"odd key":             {one + `"a\nb": 1, node: {"null": {size: 1}}}]`, `images[0]."a\nb": is an unknown key, must be one of name, format, node, filters, backing, readonly`},
		"another case":        {one + `Node: {"null": {size: 1}}}]`, `images[0].Node: is an unknown key, must be one of name, format, node, filters, backing, readonly`},
		"no name":             {`images: [{format: raw, node: {"null": {size: 1}}}]`, `images[0].name: is missing`},
		"bad name":            {`images: [{name: a/b, format: raw, node: {"null": {size: 1}}}]`, `images[0].name: "a/b" is no name`},
		"name is no text":     {`images: [{name: 5, format: raw, node: {"null": {size: 1}}}]`, `images[0].name: 5 must be text`},
		"name twice":          {`images: [{name: a, format: raw, node: {null: {size: 1}}}, {name: a, format: raw, node: {null: {size: 1}}}]`, `images[1].name: "a" is the name of images[0] too`},
		"format":              {`images: [{name: a, format: vmdk, node: {null: {size: 1}}}]`, `images[0].format: "vmdk" must be one of qcow2, raw`},
		"no format":           {`images: [{name: a, node: {null: {size: 1}}}]`, `images[0].format: is missing, and no file's extension tells it: must be one of qcow2, raw`},
		"extension":           {`images: [{name: a.raw, node: {file: {path: disk}}}]`, `images[0].format: is missing, and no file's extension tells it: must be one of qcow2, raw`},
		"readonly":            {one + `readonly: "yes", node: {null: {size: 1}}}]`, `images[0].readonly: "yes" must be true or false`},
		"backing of raw":      {one + `backing: b, node: {null: {size: 1}}}]`, `images[0].backing: an image of format raw has none`},
		"bad backing":         {one + `backing: ../b, node: {null: {size: 1}}}]`, `images[0].backing: "../b" is no name`},
		"no node":             {`images: [{name: a, format: raw}]`, `images[0].node: is missing, must have one of file, `},
		"node is empty":       {node(`{}`), `images[0].node: has 0 kinds, must have one of file, `},
		"unknown node":        {node(`{ftp: {}}`), `images[0].node.ftp: is an unknown kind, must be one of file, `},
		"two nodes":           {node(`{file: {path: x}, null: {size: 1}}`), `images[0].node: has 2 kinds (file, null), must have one of file, `},
		"node is text":        {node(`file`), `images[0].node: "file" must be a map`},
		"key of a number":     {node(`{1: {}}`), `images[0].node: the key 1 must be text`},
		"no path":             {node(`{file: {direct: true}}`), `images[0].node.file.path: is missing`},
		"path is a list":      {node(`{file: {path: [a]}}`), `images[0].node.file.path: a list must be text`},
		"path has no value":   {node(`{file: {path: }}`), `images[0].node.file.path: has no value`},
		"no size":             {node(`{null: {}}`), `images[0].node.null.size: is missing`},
		"no options":          {node(`{null: }`), `images[0].node.null.size: is missing`},
		"options are text":    {node(`{null: 5}`), `images[0].node.null: 5 must be a map`},
		"size":                {node(`{null: {size: 2XB}}`), `images[0].node.null.size: "2XB" is no size, such as 512, 64KiB or 2GiB`},
		"size in thousands":   {node(`{null: {size: 2GB}}`), `images[0].node.null.size: "2GB" is no size, such as 512, 64KiB or 2GiB`},
		"size is negative":    {node(`{null: {size: -1}}`), `images[0].node.null.size: -1 is no size, such as 512, 64KiB or 2GiB`},
		"size is a fraction":  {node(`{null: {size: 1.5}}`), `images[0].node.null.size: 1.5 is no size, such as 512, 64KiB or 2GiB`},
		"size of too much":    {node(`{null: {size: 3EiB}}`), `images[0].node.null.size: "3EiB" is more than 2EiB`},
		"huge size":           {node(`{null: {size: 18446744073709551615}}`), `images[0].node.null.size: 18446744073709551615 is more than 2EiB`},
		"filters":             {one + `node: {null: {size: 1}}, filters: {stats: {}}}]`, `images[0].filters: a map must be a list`},
		"unknown filter":      {filter(`{blocksiez: {}}`), `images[0].filters[1].blocksiez: is an unknown kind, must be one of `},
		"two filters":         {filter(`{stats: {}, log: {}}`), `images[0].filters[1]: has 2 kinds (log, stats), must have one of `},
		"filter is text":      {filter(`stats`), `images[0].filters[1]: "stats" must be a map`},
		"filter is nothing":   {filter(`~`), `images[0].filters[1]: nothing must be a map`},
		"filter's option":     {filter(`{rate: {raed: 1MiB}}`), `images[0].filters[1].rate.raed: is an unknown key, must be one of read, write, burst`},
		"no such options":     {filter(`{stats: {every: 1s}}`), `images[0].filters[1].stats.every: is an unknown key, there are none here`},
		"duration":            {filter(`{delay: {read: 5}}`), `images[0].filters[1].delay.read: 5 is no duration, such as 100ms, 2s or 1m30s`},
		"negative duration":   {filter(`{delay: {read: -5ms}}`), `images[0].filters[1].delay.read: -5ms must be at least 0`},
		"retries":             {filter(`{retry: {retries: 0}}`), `images[0].filters[1].retry.retries: 0 must be at least 1`},
		"many retries":        {filter(`{retry: {retries: 101}}`), `images[0].filters[1].retry.retries: 101 must be at most 100`},
		"half a retry":        {filter(`{retry: {retries: 1.5}}`), `images[0].filters[1].retry.retries: 1.5 must be a whole number`},
		"error's operation":   {filter(`{error: {operations: [read, wirte]}}`), `images[0].filters[1].error.operations[1]: "wirte" must be one of read, extents, write, zero, trim, truncate, flush`},
		"error's rate":        {filter(`{error: {rate: 2}}`), `images[0].filters[1].error.rate: 2 must be at most 1`},
		"error never":         {filter(`{error: {rate: 0}}`), `images[0].filters[1].error.rate: 0 must be more than 0`},
		"error's error":       {filter(`{error: {error: enospc}}`), `images[0].filters[1].error.error: "enospc" must be one of io, no-space`},
		"less than before":    {filter(`{retry: {delay: 2s, max_delay: 1s}}`), `images[0].filters[1].retry.max_delay: is 1s, must be`},
		"no room at all":      {filter(`{cache: {path: f, size: 4KiB}}`), `images[0].filters[1].cache.size: is 4096, must be`},
		"window too far":      {filter(`{offset: {offset: 2EiB, length: 1}}`), `images[0].filters[1].offset.length: is 1, must be`},
		"reserved header":     {node(`{http: {url: "http://h/f", headers: {range: "bytes=0-1"}}}`), `images[0].node.http.headers: must not have Range: it is part of the request itself`},
		"no url":              {node(`{http: {}}`), `images[0].node.http.url: is missing`},
		"other url":           {node(`{http: {url: "ftp://u:p@mirror/f?token"}}`), `images[0].node.http.url: "ftp://mirror/f" must be a URL of http or https`},
		"no url at all":       {node(`{http: {url: "http:user:secret@host"}}`), `images[0].node.http.url: the value must be a URL of http or https`},
		"header":              {node(`{http: {url: "http://h/f", headers: {Authorization: 5}}}`), `images[0].node.http.headers.Authorization: the value must be text`},
		"headers":             {node(`{http: {url: "http://h/f", headers: "Authorization: secret"}}`), `images[0].node.http.headers: the value must be a map`},
		"mem":                 {node(`{mem: {}}`), `images[0].node.mem.size: is missing`},
		"mem's max":           {node(`{mem: {size: 1MiB, max: 0}}`), `images[0].node.mem.max: 0 must be at least 4KiB`},
		"cache's size":        {filter(`{cache: {path: f, size: 2XB}}`), `images[0].filters[1].cache.size: "2XB" is no size, such as 512, 64KiB or 2GiB`},
		"cache":               {filter(`{cache: }`), "images[0].filters[1].cache.path: is missing\nimages[0].filters[1].cache.size: is missing"},
		"empty window":        {filter(`{offset: {length: 0}}`), `images[0].filters[1].offset.length: 0 must be at least 1`},
		"policy's minimum":    {filter(`{policy: {minimum: 1000}}`), `images[0].filters[1].policy.minimum: 1000 must be a power of two`},
		"policy's preferred":  {filter(`{policy: {preferred: 4MiB}}`), `images[0].filters[1].policy.preferred: 4MiB must be at most 2MiB`},
		"policy's mode":       {filter(`{policy: {mode: forbid}}`), `images[0].filters[1].policy.mode: "forbid" must be one of enforce, allow`},
		"window of readahead": {filter(`{readahead: {size: 100KiB}}`), `images[0].filters[1].readahead.size: is 102400, must be a multiple of 65536`},
		"no readahead":        {filter(`{readahead: {size: 0}}`), `images[0].filters[1].readahead.size: 0 must be at least 64KiB`},
		"no bits":             {filter(`{swab: {}}`), `images[0].filters[1].swab.bits: is missing`},
		"bits":                {filter(`{swab: {bits: 8}}`), `images[0].filters[1].swab.bits: 8 must be one of 16, 32, 64`},
		"one file for two":    {filter(`{cow: {path: ./f}}, {cache: {path: f, size: 1GiB}}`), `images[0].filters[2].cache.path: "DIR/f" is the file of images[0].filters[1].cow.path too`},
		"file overwritten":    {one + `node: {file: {path: f}}, filters: [{cow: {path: d/../f}}]}]`, `images[0].node.file.path: "DIR/f" is the file of images[0].filters[0].cow.path, which overwrites it`},
		"two findings":        {node(`{null: {size: x, sise: y}}`), "images[0].node.null.size: \"x\" is no size, such as 512, 64KiB or 2GiB\nimages[0].node.null.sise: is an unknown key, must be one of size"},
		"a key twice":         {"images: []\nimages: []", "yaml: unmarshal errors:\n  line 2: mapping key \"images\" already defined at line 1"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			got, err := imagesOf(t, dir, test.config)
			if err == nil || !strings.Contains(err.Error(), ".yaml: "+strings.ReplaceAll(test.want, "DIR", dir)) {
				t.Errorf("%+v, %v\nwant %s", got.Images, err, test.want)
			}
		})
	}
}

// TestGraphs: the examples of the documentation become the graphs that they
// mean, with paths beside the file.
func TestGraphs(t *testing.T) {
	dir := t.TempDir()
	c, err := imagesOf(t, dir, `
images:
  - name: fedora
    format: qcow2
    node: {http: {url: "https://mirror.example/f.qcow2"}}
    filters: [{cache: {path: f.cache, size: 2GiB}}, {retry: {}}]
  - name: window
    format: raw
    node: {file: {path: disk.raw, direct: true}}
    filters: [{offset: {offset: 1MiB, length: 8MiB}}, {blocksize: {}}]
  - {name: scratch, format: raw, node: {null: {size: 1TiB}}, readonly: true}
  - {name: over, backing: window, node: {file: {path: /srv/over.qcow2}}}
`)
	if err != nil {
		t.Fatal(err)
	}
	if c.Dir != "" {
		t.Errorf("directory %q is served", c.Dir)
	}
	opt, err := c.service(wiring{})
	if err != nil {
		t.Fatal(err)
	}
	want := []service.ImageSpec{
		{Name: "fedora", Format: "qcow2", Graph: &service.Graph{
			Node: service.GraphNode{Kind: "http", Name: "mirror.example/f.qcow2", Options: `{"url":"https://mirror.example/f.qcow2"}`, ReadOnly: true},
			Filters: []service.GraphFilter{
				{Kind: "cache", Options: `{"path":"` + dir + `/f.cache","size":"2GiB"}`, Keep: true},
				{Kind: "retry", Options: `{}`},
			},
		}},
		{Name: "window", Format: "raw", Graph: &service.Graph{
			Node: service.GraphNode{Kind: "file", Name: "disk.raw", Path: dir + "/disk.raw", Direct: true, Options: `{"path":"` + dir + `/disk.raw","direct":true}`},
			Filters: []service.GraphFilter{
				{Kind: "offset", Options: `{"offset":"1MiB","length":"8MiB"}`},
				{Kind: "blocksize", Options: `{}`},
			},
		}},
		{Name: "scratch", Format: "raw", ReadOnly: true, Graph: &service.Graph{Node: service.GraphNode{Kind: "null", Name: "null", Options: `{"size":"1TiB"}`}}},
		{Name: "over", Format: "qcow2", Backing: "window", Graph: &service.Graph{
			Node: service.GraphNode{Kind: "file", Name: "over.qcow2", Path: "/srv/over.qcow2", Options: `{"path":"/srv/over.qcow2"}`},
		}},
	}
	for _, spec := range opt.Images {
		if g := spec.Graph; (g.Node.Open == nil) == (g.Node.Path == "") {
			t.Errorf("%s: the node has one of path and Open", spec.Name)
		} else {
			g.Node.Open = nil
		}
		for i := range spec.Graph.Filters {
			if spec.Graph.Filters[i].Open == nil {
				t.Errorf("%s: filter %d cannot be opened", spec.Name, i)
			}
			spec.Graph.Filters[i].Open = nil
		}
	}
	if diff := cmp.Diff(want, opt.Images); diff != "" {
		t.Error(diff)
	}
}

func TestByteSizes(t *testing.T) {
	for text, want := range map[string]byteSize{
		"0": 0, "512": 512, "0KiB": 0, "1KiB": 1 << 10, "64KiB": 64 << 10, "3MiB": 3 << 20, "2GiB": 2 << 30, "1TiB": 1 << 40,
		"5PiB": 5 << 50, "2EiB": 2 << 60, "2305843009213693952": 2 << 60, "1025KiB": 1025 << 10,
	} {
		got, err := parseByteSize(text)
		if err != nil || got != want {
			t.Errorf("%s: %d, %v", text, got, err)
		}
		if again, err := parseByteSize(got.String()); err != nil || again != got {
			t.Errorf("%s becomes %s: %d, %v", text, got, again, err)
		}
	}
	for _, text := range []string{
		"", " 1", "1 KiB", "KiB", "iB", "1iB", "1B", "1K", "1k", "1KB", "1kib", "1ZiB", "0x10", "+1", "-1", "1.5GiB", "1_000", "1e3",
		"3EiB", "2305843009213693953", "9223372036854775808", "18446744073709551616KiB", "99999999999999999999",
	} {
		if got, err := parseByteSize(text); err == nil {
			t.Errorf("%q: %d", text, got)
		}
	}
}
