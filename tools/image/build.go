package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Content is what all images hold but for the binary.
type Content struct {
	License      string    // a file
	Certificates string    // a file of authorities, PEM
	Version      string    // what the labels say
	Created      time.Time // the date of everything
}

// A Binary is a static extentd for a platform.
type Binary struct {
	Platform *v1.Platform
	Path     string
}

// ParseBinary reads PLATFORM=PATH, such as linux/amd64=extentd.
func ParseBinary(text string) (Binary, error) {
	platform, path, ok := strings.Cut(text, "=")
	if !ok || path == "" {
		return Binary{}, fmt.Errorf("binary is %q, must be as linux/amd64=PATH", text)
	}
	p, err := v1.ParsePlatform(platform)
	if err == nil && (p.OS == "" || p.Architecture == "") {
		err = errors.New("must have an operating system and an architecture")
	}
	if err != nil {
		return Binary{}, fmt.Errorf("platform is %q: %w", platform, err)
	}
	return Binary{Platform: p, Path: path}, nil
}

// Index makes an index of the images of the binaries.
func Index(c Content, binaries []Binary) (v1.ImageIndex, error) {
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, b := range binaries {
		image, err := Assemble(c, b)
		if err != nil {
			return nil, fmt.Errorf("image for %s: %w", b.Platform, err)
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: image, Descriptor: v1.Descriptor{Platform: b.Platform}})
	}
	return index, nil
}

// Assemble makes the image of one binary.
func Assemble(c Content, b Binary) (v1.Image, error) {
	layer, err := rootLayer(c, b.Path)
	if err != nil {
		return nil, err
	}
	image := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	image, err = mutate.Append(image, mutate.Addendum{
		Layer:   layer,
		History: v1.History{Created: v1.Time{Time: c.Created}, CreatedBy: "tools/image"},
	})
	if err != nil {
		return nil, err
	}
	file, err := image.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.OS, file.Architecture, file.Variant = b.Platform.OS, b.Platform.Architecture, b.Platform.Variant
	file.Created = v1.Time{Time: c.Created}
	file.Config = config(c.Version)
	return mutate.ConfigFile(image, file)
}

// config is what the Dockerfile says of how the image is run.
func config(version string) v1.Config {
	return v1.Config{
		User:         fmt.Sprintf("%d:%d", owner, owner),
		ExposedPorts: map[string]struct{}{"7080/tcp": {}},
		Entrypoint:   []string{"/extentd"},
		Cmd:          []string{"serve", "/images"},
		Labels: map[string]string{
			"org.opencontainers.image.title":       "extentd",
			"org.opencontainers.image.description": "Serves disk images over HTTP: where their blocks are, and what is in them",
			"org.opencontainers.image.licenses":    "Apache-2.0",
			"org.opencontainers.image.version":     version,
		},
	}
}

// Write puts an index into a layout at dir, under the name of its version, in
// place of what is there, and says its digest.
func Write(index v1.ImageIndex, dir, version string) (v1.Hash, error) {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return v1.Hash{}, err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), ".image-")
	if err != nil {
		return v1.Hash{}, err
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	named := mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.OCIImageIndex), mutate.IndexAddendum{
		Add:        index,
		Descriptor: v1.Descriptor{Annotations: map[string]string{"org.opencontainers.image.ref.name": version}},
	})
	if _, err := layout.Write(tmp, named); err != nil {
		return v1.Hash{}, err
	}
	if err := os.Chmod(tmp, 0o755); err != nil {
		return v1.Hash{}, err
	}
	if err := os.RemoveAll(dir); err != nil {
		return v1.Hash{}, err
	}
	if err := os.Rename(tmp, dir); err != nil {
		return v1.Hash{}, err
	}
	return index.Digest()
}
