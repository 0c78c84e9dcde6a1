package service

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/file"
)

// An ImageSpec adds one image explicitly. It wins over names stored in the
// image.
type ImageSpec struct {
	// Name is the image's name, see [ValidName].
	Name string
	// Path is the host path of its file. Default: it stands on Graph.
	Path string
	// Graph is what it stands on, instead of Path. No two images share one.
	Graph *Graph
	// Format is the name of its format. Default: by the extension of Path, or of
	// the graph's file.
	Format string
	// DataFile is the host path of the external data file, whatever name the
	// image stores. Default: the name that the image stores.
	DataFile string
	// Backing is the name of the image that backs this one, whatever name it
	// stores. Default: the name that the image stores.
	Backing string
	// ReadOnly: the image is not written to. Default: false.
	ReadOnly bool
}

// maxName is the longest name of an image, bytes.
const maxName = 255

// ValidName reports whether name can be an image's:
// [A-Za-z0-9][A-Za-z0-9._-]{0,254}.
func ValidName(name string) bool {
	if name == "" || len(name) > maxName {
		return false
	}
	for i := range len(name) {
		c := name[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case i > 0 && (c == '.' || c == '_' || c == '-'):
		default:
			return false
		}
	}
	return true
}

// ParseImageSpec reads NAME=PATH[,format=F][,data-file=PATH][,backing=NAME][,readonly].
// A comma in a path is written twice, as QEMU does.
func ParseImageSpec(text string) (ImageSpec, error) {
	fields := splitFields(text)
	name, path, _ := strings.Cut(fields[0], "=")
	if !ValidName(name) || path == "" {
		return ImageSpec{}, fmt.Errorf("image %q: want NAME=PATH[,format=F][,data-file=PATH][,backing=NAME][,readonly]", text)
	}
	spec := ImageSpec{Name: name, Path: path}
	into := map[string]*string{"format": &spec.Format, "data-file": &spec.DataFile, "backing": &spec.Backing}
	for _, field := range fields[1:] {
		key, value, _ := strings.Cut(field, "=")
		if field == "readonly" {
			spec.ReadOnly = true
			continue
		}
		at := into[key]
		if at == nil || value == "" {
			return ImageSpec{}, fmt.Errorf("image %s: %q is not one of format=F, data-file=PATH, backing=NAME, readonly", name, field)
		}
		if *at != "" {
			return ImageSpec{}, fmt.Errorf("image %s: %s is given twice", name, key)
		}
		*at = value
	}
	return spec, nil
}

// splitFields splits at commas; two together stand for one in a field.
func splitFields(text string) []string {
	const comma = "\x00" // no path holds it
	fields := strings.Split(strings.ReplaceAll(text, ",,", comma), ",")
	for i := range fields {
		fields[i] = strings.ReplaceAll(fields[i], comma, ",")
	}
	return fields
}

// check fills in the format, and reports what cannot be.
func (i *ImageSpec) check(formats map[string]Driver) error {
	if !ValidName(i.Name) {
		return fmt.Errorf("service: %q cannot be an image's name", i.Name)
	}
	if err := i.checkGraph(); err != nil {
		return fmt.Errorf("service: image %s: %w", i.Name, err)
	}
	if i.Format == "" {
		i.Format = FormatOf(i.Path, formats)
	}
	driver, known := formats[i.Format]
	switch {
	case i.Format == "":
		return fmt.Errorf("service: image %s: the format is not given, and %s does not tell", i.Name, filepath.Base(i.Path))
	case !known:
		return fmt.Errorf("service: image %s: %w: format %q", i.Name, storage.ErrUnsupported, i.Format)
	case !driver.Children && (i.Backing != "" || i.DataFile != ""):
		return fmt.Errorf("service: image %s: format %s has neither backing nor data file", i.Name, i.Format)
	}
	return nil
}

// checkGraph takes the image's file from its graph, and drops a graph that is no
// more than its file.
func (i *ImageSpec) checkGraph() error {
	if i.Graph == nil {
		return nil
	}
	if i.Path != "" {
		return errors.New("it has a path, and a graph beside it")
	}
	g := Graph{Node: i.Graph.Node, Filters: slices.Clone(i.Graph.Filters)}
	if err := g.check(); err != nil {
		return err
	}
	i.Graph, i.Path = &g, g.Node.Path
	if g.plain() {
		i.Graph, i.ReadOnly = nil, i.ReadOnly || g.Node.ReadOnly
	}
	return nil
}

// FormatOf is the format that a file's extension tells, or "". Content is never
// looked at: a guest can write whatever header it likes into a raw disk.
func FormatOf(path string, formats map[string]Driver) string {
	ext := filepath.Ext(path)
	for format, d := range formats {
		for _, e := range d.Extensions {
			if e == ext {
				return format
			}
		}
	}
	return ""
}

// A source is a file, or an image's graph, that has been found but not opened.
type source struct {
	node   string // what the file, or the graph's node, is called in mappings and errors
	format string
	root   *root  // the directory that confines it; nil: the operator named it
	path   string // in root, or on the host; "" for a graph that stands on no file
	host   string // where it is on the host: names stored in it are relative to that
	spec   *ImageSpec
	graph  *Graph // nil: the file is all there is
	direct bool   // past the page cache
}

// find is the source of an image's top layer, or an error that wraps
// storage.ErrNotFound where there can be none.
func (s *Service) find(name string) (source, error) {
	if spec, ok := s.images[name]; ok {
		src := source{node: filepath.Base(spec.Path), format: spec.Format, path: spec.Path, host: spec.Path, spec: &spec, graph: spec.Graph}
		if src.graph != nil {
			src.node = src.graph.Node.Name
		}
		return src, nil
	}
	format := ""
	if s.opt.Dir != "" && ValidName(name) {
		format = FormatOf(name, s.opt.Formats)
	}
	if format == "" {
		return source{}, fmt.Errorf("image %q: %w", name, storage.ErrNotFound)
	}
	r := &s.roots[0]
	return source{node: name, format: format, root: r, path: name, host: filepath.Join(r.path, name)}, nil
}

// readOnly reports whether the image is not to be written to, for how it was named.
func (s *source) readOnly() bool {
	return s.spec != nil && s.spec.ReadOnly || s.graph != nil && s.graph.readOnly()
}

// bottom is the file that the source's graph stands on.
func (s *source) bottom() *source {
	if s.graph == nil {
		return s
	}
	return &source{node: s.node, path: s.path, host: s.host, direct: s.graph.Node.Direct}
}

// open opens the file, which must be a regular file or a block device.
// While it is open here nobody else may write to it.
func (s *source) open(ctx context.Context) (*file.File, error) {
	return s.openWith(ctx, file.Options{Direct: s.direct})
}

func (s *source) openWith(ctx context.Context, opt file.Options) (*file.File, error) {
	if s.root != nil {
		return s.root.dir.Open(ctx, s.path, opt)
	}
	return file.Open(ctx, s.path, opt)
}

// identify is the identity of what the name leads to now, which is not opened:
// of a graph, its file's. One that has none, or is never opened anew, has
// always the same.
func (s *source) identify() (file.Identity, error) {
	if s.graph == nil {
		return s.locate()
	}
	if s.path == "" || s.graph.precious() {
		return file.Identity{}, nil
	}
	id, err := s.locate()
	return id, unavailable(err)
}

// locate is the identity of the file.
func (s *source) locate() (file.Identity, error) {
	if s.root != nil {
		return s.root.dir.Identity(s.path)
	}
	return file.Stat(s.path)
}

// key says under which key what identify has found is open.
func (s *source) key(id file.Identity) tableKey {
	if s.graph != nil {
		return tableKey{file: fileKey{graph: s.spec.Name}}
	}
	return tableKey{file: keyOf(id), direct: s.direct}
}
