package test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// A kind is one sort of image. It is made when a test first needs it, in the
// served directory, and no test changes it afterwards.
type kind struct {
	name string
	// make makes the image and returns its file's name, which begins with the
	// maker's.
	make func(m *maker) string
	// windows are what is compared of an image that is too large for
	// qemu-img to read or map as a whole; nil for the others.
	windows []window
	// unreadable: recognised and mapped, but its data is refused. The value
	// is what qemu-img needs to map it.
	unreadable string

	// oddBacking is the size of a raw backing file that is no multiple of
	// 512: QEMU rounds it up, and we do not. 0 for the others.
	oddBacking int64

	once sync.Once
	done bool
	log  []string

	file     string // in served
	size     int64  // bytes
	expected string // the path of the raw copy; "" with windows or unreadable
}

type window struct{ offset, length int64 }

// ready makes the image if it is not there yet.
func (k *kind) ready(t *testing.T) {
	t.Helper()
	k.once.Do(func() {
		m := newMaker(t, served, k.name)
		k.file = k.make(m)
		k.log = m.log
		if info, err := os.Stat(filepath.Join(served, k.file)); err != nil {
			t.Fatal(err)
		} else if formatOf(k.file) == "raw" {
			k.size = info.Size() // QEMU counts in sectors
		} else {
			k.size = int64(qemuInfo(t, served, k.file)["virtual-size"].(float64))
		}
		if k.windows == nil && k.unreadable == "" {
			var err error
			if k.expected, err = convert(served, k.file); err != nil {
				t.Fatal(err)
			}
		}
		k.done = true
	})
	if !k.done {
		t.Fatalf("%s could not be made: see the first test that needed it", k.name)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%s was made with -seed %d by:\n%s", k.name, *seed, strings.Join(k.log, "\n"))
		}
	})
}

// read is what QEMU reads in a range, or the part of it inside the image.
func (k *kind) read(t testing.TB, off, length int64) []byte {
	t.Helper()
	length = min(length, k.size-off)
	if k.windows != nil {
		first, last := off&^511, (off+length+511)&^511
		return qemuRead(t, served, k.file, first, last-first)[off-first:][:length]
	}
	f, err := os.Open(k.expected)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	data := make([]byte, length)
	if n, err := f.ReadAt(data, off); err != nil {
		t.Fatalf("%s: %d bytes at %d, got %d: %v", k.expected, length, off, n, err)
	}
	return data
}

// lines are `qemu-img map --output=json` of the image, but for the size of raw
// files, which is exact here.
func (k *kind) lines(t testing.TB) []mapLine {
	t.Helper()
	var lines []mapLine
	for _, l := range k.qemuLines(t) {
		end := min(l.Start+l.Length, k.size)
		l.Length = end - l.Start
		if l.Length <= 0 && k.size > 0 {
			continue
		}
		if k.oddBacking == 0 || l.Depth == 0 || end <= k.oddBacking {
			lines = append(lines, l)
			continue
		}
		if l.Length = k.oddBacking - l.Start; l.Length > 0 {
			lines = append(lines, l)
		}
		start := max(l.Start, k.oddBacking)
		lines = append(lines, mapLine{Start: start, Length: end - start, Zero: true})
	}
	return lines
}

func (k *kind) qemuLines(t testing.TB) []mapLine {
	t.Helper()
	switch {
	case k.unreadable != "":
		opts := fmt.Sprintf("driver=qcow2,%s,file.driver=file,file.filename=%s", k.unreadable, k.file)
		return qemuMap(t, served, "", "--object", secret, "--image-opts", opts)
	case k.windows == nil:
		return qemuMap(t, served, k.file)
	}
	var all []mapLine
	for _, w := range k.windows {
		all = append(all, qemuMap(t, served, k.file,
			fmt.Sprintf("--start-offset=%d", w.offset), fmt.Sprintf("--max-length=%d", w.length))...)
	}
	return all
}

// spans are what QEMU says of the image, up to its size.
func (k *kind) spans(t testing.TB) []span {
	t.Helper()
	return merge(clip(spansOf(k.lines(t)), 0, k.size))
}

// eachKind runs a test for every kind of image, two at a time.
func eachKind(t *testing.T, f func(t *testing.T, k *kind)) {
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			k.ready(t)
			f(t, k)
		})
	}
}

const secret = "secret,id=s,data=swordfish"
