package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// owner is the user and the group that extentd runs as, whom /images belongs to.
const owner = 65532

// rootLayer is the root file system of the image.
func rootLayer(c Content, binary string) (v1.Layer, error) {
	var text bytes.Buffer
	t := tarWriter{w: tar.NewWriter(&text), date: c.Created}
	t.dir("etc/", 0)
	t.dir("etc/ssl/", 0)
	t.dir("etc/ssl/certs/", 0)
	t.file("etc/ssl/certs/ca-certificates.crt", c.Certificates, 0o644)
	t.file("LICENSE", c.License, 0o644)
	t.file("extentd", binary, 0o755)
	t.dir("images/", owner)
	if t.err == nil {
		t.err = t.w.Close()
	}
	if t.err != nil {
		return nil, t.err
	}
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(text.Bytes())), nil }
	return tarball.LayerFromOpener(open, tarball.WithMediaType(types.OCILayer))
}

// A tarWriter writes entries that depend on nothing but their content. The first
// error stays.
type tarWriter struct {
	w    *tar.Writer
	date time.Time
	err  error
}

func (t *tarWriter) dir(name string, owner int) {
	t.header(&tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755, Uid: owner, Gid: owner})
}

func (t *tarWriter) file(name, from string, mode int64) {
	if t.err != nil {
		return
	}
	text, err := os.ReadFile(from)
	if err != nil {
		t.err = fmt.Errorf("/%s: %w", name, err)
		return
	}
	t.header(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(text))})
	if t.err == nil {
		_, t.err = t.w.Write(text)
	}
}

func (t *tarWriter) header(h *tar.Header) {
	if t.err != nil {
		return
	}
	h.ModTime, h.Format = t.date, tar.FormatPAX
	t.err = t.w.WriteHeader(h)
}
