package crash_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/file"
)

// TestDifferentialDirect does the workloads to real files, in turn with QEMU,
// without a server: several workers, a clean close, and then the bytes are the
// model's, qemu-img check finds nothing, and QEMU goes on.
func TestDifferentialDirect(t *testing.T) {
	soak(t, 4, func(t *testing.T, round int) {
		for _, k := range kinds {
			t.Run(fmt.Sprintf("%s %d", k.name, round), func(t *testing.T) {
				t.Parallel()
				dir := dump(t, k.load(t))
				for session := range 3 {
					name := fmt.Sprintf("direct %s %d %d", k.name, round, session)
					directSession(t, k, dir, name)
					offset := source(name).Int64N(k.size/2/k.cluster) * k.cluster
					run(t, dir, "qemu-io", "-f", "qcow2", "-d", "unmap", "-c", fmt.Sprintf("write -P %d %d %d", session+1, offset, 3*k.cluster),
						"-c", fmt.Sprintf("write -z -u %d %d", offset, k.cluster), "-c", fmt.Sprintf("discard %d %d", offset+2*k.cluster, k.cluster), "image.qcow2")
					if len(k.before) > 0 {
						run(t, dir, "qemu-img", "snapshot", "-c", fmt.Sprint("session ", session), "image.qcow2")
					}
				}
			})
		}
	})
}

// directSession is one opening of the image in a directory.
func directSession(t *testing.T, k *kind, dir, name string) {
	t.Helper()
	ctx := t.Context()
	files := map[string]storage.File{}
	var writable []*file.File
	for base := range k.load(t) {
		f, err := file.Open(ctx, filepath.Join(dir, base), file.Options{})
		must(t, err)
		files[base] = f
		if base != "below.raw" {
			writable = append(writable, f)
		}
	}
	d, err := openDisk(ctx, files)
	must(t, err)
	for _, f := range writable {
		must(t, f.StartWriting(ctx))
	}
	must(t, d.startWriting(ctx))
	initial, err := readAll(ctx, d)
	must(t, err)
	w := &worker{kind: k, disk: d, history: newHistory(initial), random: source(name), at: func() int { return 0 }, hi: d.Size()}
	fatal := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s, -seed %d: %v\n%s", name, *seed, err, w.log)
		}
	}
	for range 80 {
		fatal(w.step(ctx))
	}
	w.history.flushed(w.history.now(), 0)
	got, err := readAll(ctx, d)
	fatal(err)
	fatal(w.history.check(got, 0))
	fatal(errors.Join(d.close(), d.closeFiles()))
	if out, err := try(dir, "qemu-img", "check", "-f", "qcow2", "image.qcow2"); err != nil {
		fatal(fmt.Errorf("qemu-img check: %w\n%s", err, out))
	}
	must(t, os.WriteFile(filepath.Join(dir, "model"), got, 0o644))
	if out, err := try(dir, "qemu-img", "compare", "-f", "qcow2", "-F", "raw", "image.qcow2", "model"); err != nil {
		fatal(fmt.Errorf("qemu-img compare: %w\n%s", err, out))
	}
}
