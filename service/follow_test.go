package service_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage"
)

// link is the content of a file in a format of these tests, which holds
// nothing but names. It is read as it is, as if it were raw.
type link struct {
	Backing, Format, Data string `json:",omitempty"`
}

func linkDriver() service.Driver {
	d := service.RawDriver()
	open := d.Open
	d.Extensions = []string{".link"}
	d.Children = true
	d.Open = func(ctx context.Context, node *storage.Node, opt service.DriverOptions) (service.Layer, error) {
		size, err := node.Size(ctx)
		if err != nil {
			return service.Layer{}, err
		}
		text := make([]byte, size)
		if _, err := node.ReadAt(ctx, text, 0); err != nil && !errors.Is(err, io.EOF) {
			return service.Layer{}, err
		}
		var l link
		if err := json.Unmarshal(text, &l); err != nil {
			return service.Layer{}, fmt.Errorf("%w: %w", storage.ErrCorrupt, err)
		}
		if l.Data != "" {
			if _, err := opt.OpenData(ctx, l.Data); err != nil {
				return service.Layer{}, err
			}
		}
		layer, err := open(ctx, node, opt)
		layer.Backing, layer.BackingFormat = l.Backing, l.Format
		return layer, err
	}
	return d
}

func linkFormats() map[string]service.Driver {
	return map[string]service.Driver{"raw": service.RawDriver(), "link": linkDriver()}
}

func (l link) write(t *testing.T, path string) {
	t.Helper()
	text, err := json.Marshal(l)
	if err != nil {
		t.Fatal(err)
	}
	write(t, path, text)
}

// nodesOf are the nodes of an image's layers.
func nodesOf(t *testing.T, svc *service.Service, name string) ([]string, error) {
	t.Helper()
	h, err := svc.Acquire(t.Context(), name)
	if err != nil {
		return nil, err
	}
	defer h.Release()
	info, err := h.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var nodes []string
	for _, l := range info.Layers {
		nodes = append(nodes, l.Node)
	}
	return nodes, nil
}

func TestNamesAreFollowedInside(t *testing.T) {
	top := t.TempDir()
	dir, templates := filepath.Join(top, "served"), filepath.Join(top, "templates")
	write(t, filepath.Join(dir, "base.raw"), pattern(1, 64))
	write(t, filepath.Join(dir, "sub", "deep.raw"), pattern(1, 64))
	write(t, filepath.Join(dir, "no-extension"), pattern(1, 64))
	write(t, filepath.Join(dir, "with:colon.raw"), pattern(1, 64))
	write(t, filepath.Join(templates, "golden.raw"), pattern(1, 64))
	link{Backing: "deep.raw"}.write(t, filepath.Join(dir, "sub", "middle.link"))
	link{Backing: "../base.raw"}.write(t, filepath.Join(dir, "sub", "up.link"))
	for name, target := range map[string]string{
		"linked.raw": "sub/deep.raw", "absolute.raw": filepath.Join(dir, "base.raw"), "linked-dir": "sub",
	} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(dir, filepath.Join(top, "alias")); err != nil {
		t.Fatal(err)
	}
	svc := start(t, service.Options{Dir: filepath.Join(top, "alias"), BackingDirs: []string{templates}, Formats: linkFormats()})
	for _, test := range []struct {
		link
		want []string
	}{
		{link{Backing: "base.raw"}, []string{"base.raw"}},
		{link{Backing: "./base.raw"}, []string{"base.raw"}},
		{link{Backing: "sub/../base.raw"}, []string{"base.raw"}},
		{link{Backing: "sub/deep.raw", Format: "raw"}, []string{"sub/deep.raw"}},
		{link{Backing: "no-extension", Format: "raw"}, []string{"no-extension"}},
		{link{Backing: "./with:colon.raw"}, []string{"with:colon.raw"}},
		{link{Backing: filepath.Join(top, "alias", "base.raw")}, []string{"base.raw"}},
		{link{Backing: filepath.Join(dir, "base.raw")}, []string{"base.raw"}}, // the directory's other name
		{link{Backing: filepath.Join(templates, "golden.raw")}, []string{"golden.raw"}},
		{link{Backing: "../templates/golden.raw"}, []string{"golden.raw"}},
		{link{Backing: "../alias/base.raw"}, []string{"base.raw"}},
		{link{Backing: "linked.raw"}, []string{"linked.raw"}},
		{link{Backing: "absolute.raw"}, []string{"absolute.raw"}},
		{link{Backing: "linked-dir/deep.raw"}, []string{"linked-dir/deep.raw"}},
		{link{Backing: "sub/middle.link"}, []string{"sub/middle.link", "sub/deep.raw"}},
		{link{Backing: "sub/up.link", Format: "link"}, []string{"sub/up.link", "base.raw"}},
		{link{Backing: "sub/middle.link", Format: "raw"}, []string{"sub/middle.link"}}, // the stored format holds
		{link{Data: "base.raw"}, nil},
		{link{Data: "no-extension", Backing: "base.raw"}, []string{"base.raw"}},
	} {
		test.write(t, filepath.Join(dir, "top.link"))
		got, err := nodesOf(t, svc, "top.link")
		if diff := cmp.Diff(append([]string{"top.link"}, test.want...), got); err != nil || diff != "" {
			t.Errorf("%+v: %v\n%s", test.link, err, diff)
		}
	}
	if _, err := svc.Acquire(t.Context(), "golden.raw"); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("a backing directory is served: %v", err)
	}
}

func TestNamesThatAreNotFollowed(t *testing.T) {
	top := t.TempDir()
	dir, secret := filepath.Join(top, "served"), filepath.Join(top, "outside", "secret.raw")
	write(t, secret, pattern(1, 64))
	write(t, filepath.Join(dir, "base.raw"), pattern(1, 64))
	write(t, filepath.Join(dir, "base.vmdk"), pattern(1, 64))
	write(t, filepath.Join(dir, "garbage.link"), pattern(1, 64))
	if err := os.Mkdir(filepath.Join(dir, "directory.raw"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "fifo.raw"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{
		"out.raw": "../outside/secret.raw", "out-absolute.raw": secret, "out": "../outside",
		"twice.raw": "out.raw", "dangling.raw": "nowhere.raw", "loop.raw": "loop.raw",
	} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	served := start(t, service.Options{Dir: dir, Formats: linkFormats()})
	denying := start(t, service.Options{Dir: dir, Formats: linkFormats(), FollowBacking: service.FollowDeny})
	const refused, missing = "refused", "missing"
	sentinel := map[string]error{
		refused: storage.ErrRefused, missing: storage.ErrBackingUnavailable,
		"unsupported": storage.ErrUnsupported, "corrupt": storage.ErrCorrupt,
	}
	for name, want := range map[string]string{
		secret:                          refused,
		"../outside/secret.raw":         refused,
		"./../outside/secret.raw":       refused,
		"x/../../outside/secret.raw":    refused,
		dir + "/../outside/secret.raw":  refused,
		"/" + secret:                    refused,
		"/etc/passwd":                   refused,
		"..":                            refused,
		".":                             refused,
		"/":                             refused,
		"base.raw/":                     refused,
		"out.raw":                       refused,
		"out-absolute.raw":              refused,
		"twice.raw":                     refused,
		"out/secret.raw":                refused,
		"directory.raw":                 refused,
		"fifo.raw":                      refused,
		"nul\x00.raw":                   refused,
		"base.raw\x00":                  refused,
		"json:{\"driver\":\"raw\"}":     refused,
		"json:":                         refused,
		"nbd://127.0.0.1/x.raw":         refused,
		"nbd:unix:/x.raw":               refused,
		"http://127.0.0.1/x.raw":        refused,
		"file:base.raw":                 refused,
		"file:" + dir + "/base.raw":     refused,
		"fat:/etc.raw":                  refused,
		"c:base.raw":                    refused,
		"missing.raw":                   missing,
		"missing/base.raw":              missing,
		"dangling.raw":                  missing,
		"loop.raw":                      missing,
		"base.raw/x.raw":                missing,
		strings.Repeat("a", 1000):       missing,
		"garbage.link":                  "corrupt",
		"top.link":                      missing, // itself
		"base.vmdk":                     "unsupported",
		dir + "/" + "missing\nline.raw": missing,
	} {
		for _, l := range []link{{Backing: name, Format: "raw"}, {Backing: name}, {Data: name}} {
			want := want
			switch {
			case l.Data != "" && (want == "corrupt" || want == "unsupported"), l.Format == "raw" && (want == "corrupt" || want == "unsupported"):
				continue // any file will do
			case l.Format == "" && l.Data == "" && want == missing && service.FormatOf(name, linkFormats()) == "":
				want = "unsupported"
			}
			l.write(t, filepath.Join(dir, "top.link"))
			if got, err := nodesOf(t, served, "top.link"); !errors.Is(err, sentinel[want]) {
				t.Errorf("%+v: %v, %v, want %v", l, got, err, want)
			} else if strings.Contains(err.Error(), top) && !strings.Contains(name, top) {
				t.Errorf("%+v: the error tells a path of the host: %v", l, err)
			} else if errors.Is(err, storage.ErrNotFound) {
				t.Errorf("%+v: not found, but the image was: %v", l, err)
			}
			if _, err := nodesOf(t, denying, "top.link"); !errors.Is(err, storage.ErrRefused) {
				t.Errorf("%+v denied: %v", l, err)
			}
		}
		if n := openFiles(t, top+"/outside"); n > 0 {
			t.Errorf("%q: %d files outside are open", name, n)
		}
	}
	for _, format := range []string{"vmdk", "file", "data", "nbd"} {
		link{Backing: "base.raw", Format: format}.write(t, filepath.Join(dir, "top.link"))
		if _, err := nodesOf(t, served, "top.link"); !errors.Is(err, storage.ErrUnsupported) {
			t.Errorf("backing format %s: %v", format, err)
		}
	}
	if n := openFiles(t, dir); n > 0 {
		t.Errorf("%d files are open after failures", n)
	}
}

func TestLoops(t *testing.T) {
	dir := t.TempDir()
	link{Backing: "b.link"}.write(t, filepath.Join(dir, "a.link"))
	link{Backing: "./c.link"}.write(t, filepath.Join(dir, "b.link"))
	link{Backing: filepath.Join(dir, "a.link")}.write(t, filepath.Join(dir, "c.link"))
	link{Backing: "hard.link"}.write(t, filepath.Join(dir, "self.link"))
	if err := os.Link(filepath.Join(dir, "self.link"), filepath.Join(dir, "hard.link")); err != nil {
		t.Fatal(err)
	}
	link{Data: "data.link"}.write(t, filepath.Join(dir, "data.link"))
	svc := start(t, service.Options{Dir: dir, Formats: linkFormats()})
	for _, name := range []string{"a.link", "b.link", "c.link", "self.link", "hard.link", "data.link"} {
		if got, err := nodesOf(t, svc, name); !errors.Is(err, storage.ErrBackingUnavailable) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

func TestDepth(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "1.raw"), pattern(1, 64))
	link{Backing: "1.raw"}.write(t, filepath.Join(dir, "2.link"))
	for depth := 3; depth <= 66; depth++ {
		link{Backing: fmt.Sprintf("%d.link", depth-1)}.write(t, filepath.Join(dir, fmt.Sprintf("%d.link", depth)))
	}
	svc := start(t, service.Options{Dir: dir, Formats: linkFormats()})
	for depth, want := range map[int]error{2: nil, 60: nil, 64: nil, 65: storage.ErrBackingUnavailable, 66: storage.ErrBackingUnavailable} {
		nodes, err := nodesOf(t, svc, fmt.Sprintf("%d.link", depth))
		if !errors.Is(err, want) || err == nil && len(nodes) != depth {
			t.Errorf("%d layers: %d, %v", depth, len(nodes), err)
		}
	}
}

func TestChangedBackingIsOpenedAnew(t *testing.T) {
	for _, child := range []link{{Backing: "base.raw"}, {Data: "base.raw"}, {Backing: "middle.link"}} {
		dir := t.TempDir()
		base := filepath.Join(dir, "base.raw")
		write(t, base, pattern(1, 64))
		link{Backing: "base.raw"}.write(t, filepath.Join(dir, "middle.link"))
		child.write(t, filepath.Join(dir, "top.link"))
		svc := start(t, service.Options{Dir: dir, Formats: linkFormats()})
		seen := map[string]bool{}
		for what, change := range []func() error{
			func() error { return nil },
			func() error { return os.WriteFile(base, pattern(2, 64), 0o644) },
			func() error { return os.Truncate(base, 128) },
			func() error {
				write(t, base+"~", pattern(3, 64))
				return os.Rename(base+"~", base)
			},
		} {
			if err := change(); err != nil {
				t.Fatal(err)
			}
			h := acquire(t, svc, "top.link")
			if seen[h.Generation()] || seen[h.DataGeneration()] || h.Generation() == h.DataGeneration() {
				t.Errorf("%+v: change %d is not noticed", child, what)
			}
			seen[h.Generation()], seen[h.DataGeneration()] = true, true
			h.Release()
		}
	}
}

func TestExplicitImages(t *testing.T) {
	top := t.TempDir()
	dir, other := filepath.Join(top, "served"), filepath.Join(top, "other")
	write(t, filepath.Join(dir, "base.raw"), pattern(1, 64))
	write(t, filepath.Join(other, "disk"), pattern(2, 64))
	write(t, filepath.Join(other, "sibling.raw"), pattern(3, 64))
	link{Backing: "sibling.raw"}.write(t, filepath.Join(other, "over.link"))
	link{Backing: "/nowhere/x.raw", Data: "/nowhere/y.raw"}.write(t, filepath.Join(other, "bound.link"))
	link{}.write(t, filepath.Join(other, "plain.link"))
	path := func(name string) string { return filepath.Join(other, name) }
	svc := start(t, service.Options{Dir: dir, Formats: linkFormats(), Images: []service.ImageSpec{
		{Name: "disk", Path: path("disk"), Format: "raw"},
		{Name: "over", Path: path("over.link")},
		{Name: "bound", Path: path("bound.link"), DataFile: path("sibling.raw"), Backing: "base.raw"},
		{Name: "stacked", Path: path("plain.link"), Backing: "disk"},
		{Name: "no-data", Path: path("plain.link"), DataFile: path("disk")},
		{Name: "lost-backing", Path: path("plain.link"), Backing: "lost"},
		{Name: "lost-data", Path: path("bound.link"), DataFile: path("lost"), Backing: "disk"},
		{Name: "ring", Path: path("plain.link"), Backing: "ring"},
	}})
	for name, want := range map[string][]string{
		"disk":    {"disk"},
		"bound":   {"bound.link", "base.raw"},
		"stacked": {"plain.link", "disk"},
	} {
		got, err := nodesOf(t, svc, name)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%s: %v\n%s", name, err, diff)
		}
	}
	for name, want := range map[string]error{
		"sibling.raw":  storage.ErrNotFound, // the directory is not opened to others
		"over":         storage.ErrRefused,  // nor to its own images
		"no-data":      storage.ErrUnsupported,
		"lost-backing": storage.ErrBackingUnavailable,
		"lost-data":    storage.ErrBackingUnavailable,
		"ring":         storage.ErrBackingUnavailable,
	} {
		if got, err := nodesOf(t, svc, name); !errors.Is(err, want) {
			t.Errorf("%s: %v, %v, want %v", name, got, err, want)
		}
	}
	write(t, path("disk~"), pattern(4, 64))
	before := readImage(t, svc, "disk")
	if err := os.Rename(path("disk~"), path("disk")); err != nil {
		t.Fatal(err)
	}
	if after := readImage(t, svc, "disk"); string(before) == string(after) {
		t.Error("the replaced file is not noticed")
	}
}

func TestTopOnly(t *testing.T) {
	dir := t.TempDir()
	link{Backing: "missing.raw"}.write(t, filepath.Join(dir, "top.link"))
	svc := start(t, service.Options{Dir: dir, Formats: linkFormats(), TopOnly: true})
	h := acquire(t, svc, "top.link")
	defer h.Release()
	info, err := h.Info(t.Context())
	if err != nil || len(info.Layers) != 1 || info.Layers[0].BackingFile != "missing.raw" {
		t.Errorf("%+v, %v", info, err)
	}
}

func TestGenerationsHoldAcrossRestarts(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "base.raw"), pattern(1, 64))
	link{Backing: "base.raw"}.write(t, filepath.Join(dir, "top.link"))
	link{Backing: "base.raw", Format: "raw"}.write(t, filepath.Join(dir, "same.link"))
	var first [2]string
	for i := range 2 {
		svc := start(t, service.Options{Dir: dir, Formats: linkFormats()})
		h := acquire(t, svc, "top.link")
		got := [2]string{h.Generation(), h.DataGeneration()}
		h.Release()
		if i == 0 {
			first = got
		} else if got != first {
			t.Errorf("%v after a restart, %v before", got, first)
		}
		base := acquire(t, svc, "base.raw")
		if base.Generation() == first[0] || base.Generation() == base.DataGeneration() {
			t.Error("generations are not told apart")
		}
		base.Release()
	}
}
