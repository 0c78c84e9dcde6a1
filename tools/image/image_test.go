package main

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

// imageFor is the image of one platform.
func imageFor(t *testing.T, arch string) v1.Image {
	t.Helper()
	manifest, err := built.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range manifest.Manifests {
		if m.Platform.OS == "linux" && m.Platform.Architecture == arch {
			image, err := built.Image(m.Digest)
			if err != nil {
				t.Fatal(err)
			}
			return image
		}
	}
	t.Fatalf("no image for %s", arch)
	return nil
}

// An entry is what the root file system holds under a name.
type entry struct {
	header *tar.Header
	text   []byte
}

func entries(t *testing.T, image v1.Image) []entry {
	t.Helper()
	r := mutate.Extract(image)
	defer r.Close()
	var all []entry
	for files := tar.NewReader(r); ; {
		h, err := files.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(files)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, entry{h, text})
	}
}

func TestRootFileSystem(t *testing.T) {
	want := []string{
		"-rwxr-xr-x 0:0 extentd",
		"-rw-r--r-- 0:0 LICENSE",
		"-rw-r--r-- 0:0 etc/ssl/certs/ca-certificates.crt",
		"drwxr-xr-x 0:0 etc",
		"drwxr-xr-x 0:0 etc/ssl",
		"drwxr-xr-x 0:0 etc/ssl/certs",
		"drwxr-xr-x 65532:65532 images",
	}
	slices.Sort(want)
	for arch, machine := range map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64} {
		t.Run(arch, func(t *testing.T) {
			var got []string
			for _, e := range entries(t, imageFor(t, arch)) {
				name := strings.TrimSuffix(e.header.Name, "/")
				got = append(got, fmt.Sprintf("%v %d:%d %s", e.header.FileInfo().Mode(), e.header.Uid, e.header.Gid, name))
				if !e.header.ModTime.Equal(date) {
					t.Errorf("%s is of %v, want %v", name, e.header.ModTime, date)
				}
				switch name {
				case "extentd":
					checkBinary(t, e.text, machine)
				case "etc/ssl/certs/ca-certificates.crt":
					if !bytes.Contains(e.text, []byte("BEGIN CERTIFICATE")) {
						t.Errorf("%s holds no certificate", name)
					}
				}
			}
			slices.Sort(got)
			if !slices.Equal(got, want) {
				t.Errorf("files:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
		})
	}
}

// checkBinary fails unless text is a static program for the machine.
func checkBinary(t *testing.T, text []byte, machine elf.Machine) {
	t.Helper()
	f, err := elf.NewFile(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	if f.Machine != machine {
		t.Errorf("the binary is for %v, want %v", f.Machine, machine)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			t.Error("the binary needs a dynamic loader")
		}
	}
}

func TestLayout(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "image")
	if err := os.MkdirAll(filepath.Join(dir, "old"), 0o755); err != nil {
		t.Fatal(err)
	}
	digest, err := Write(built, dir, version)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "old")); err == nil {
		t.Error("what was in the directory before is still there")
	}
	path, err := layout.FromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	outer, err := path.ImageIndex()
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(outer); err != nil {
		t.Error(err)
	}
	manifest, err := outer.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	if n := len(manifest.Manifests); n != 1 {
		t.Fatalf("the layout has %d entries, want 1", n)
	}
	m := manifest.Manifests[0]
	if name := m.Annotations["org.opencontainers.image.ref.name"]; m.Digest != digest || name != version {
		t.Errorf("the layout has %v as %q, want %v as %q", m.Digest, name, digest, version)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(dir), ".image-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestSameContentSameDigest(t *testing.T) {
	digest := func(c Content) v1.Hash {
		t.Helper()
		index, err := Index(c, binaries)
		if err != nil {
			t.Fatal(err)
		}
		digest, err := index.Digest()
		if err != nil {
			t.Fatal(err)
		}
		return digest
	}
	want, err := built.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if got := digest(content()); got != want {
		t.Errorf("made again: %v, was %v", got, want)
	}
	later := content()
	later.Created = date.Add(time.Hour)
	if digest(later) == want {
		t.Error("another date, the same digest")
	}
}

func TestBadArguments(t *testing.T) {
	out := filepath.Join(t.TempDir(), "x")
	for name, args := range map[string][]string{
		"no -out":             {"linux/amd64=x"},
		"no binary":           {"-out", out},
		"no path":             {"-out", out, "linux/amd64"},
		"no architecture":     {"-out", out, "linux=x"},
		"bad platform":        {"-out", out, "a/b/c/d=x"},
		"binary that is none": {"-out", out, "linux/amd64=" + out},
	} {
		t.Run(name, func(t *testing.T) {
			if err := run(args); err == nil {
				t.Error("no error")
			}
			if _, err := os.Stat(out); err == nil {
				t.Error("there is a layout")
			}
		})
	}
	t.Run("certificates", func(t *testing.T) {
		c := content()
		c.Certificates = filepath.Join(t.TempDir(), "none")
		if _, err := Assemble(c, binaries[0]); err == nil {
			t.Error("no error")
		}
	})
	t.Run("epoch", func(t *testing.T) {
		if _, err := epoch("yesterday"); err == nil {
			t.Error("no error")
		}
		if d, err := epoch("7"); err != nil || d.Unix() != 7 {
			t.Errorf("epoch(7) = %v, %v", d, err)
		}
	})
}
