package service_test

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage"
)

// BenchmarkFirstWrite is the first write to an image among many others: each of
// them is asked whether it needs the file.
func BenchmarkFirstWrite(b *testing.B) {
	dir := b.TempDir()
	write(b, filepath.Join(dir, "base.raw"), pattern(1, 4096))
	overlay(b, dir, "0.qcow2", "base.raw", "raw")
	for i := range 2000 {
		copyFile(b, filepath.Join(dir, "0.qcow2"), filepath.Join(dir, fmt.Sprintf("%d.qcow2", i+1)))
	}
	write(b, filepath.Join(dir, "a.raw"), pattern(1, 4096))
	svc := start(b, service.Options{Dir: dir})
	acquireWritable(b, svc, "a.raw").Release()
	for b.Loop() {
		w := acquireWritable(b, svc, "a.raw")
		w.Report(storage.ErrOutOfService)
		w.Release()
	}
}

func copyFile(tb testing.TB, from, to string) {
	tb.Helper()
	in, err := os.Open(from)
	if err != nil {
		tb.Fatal(err)
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		tb.Fatal(err)
	}
	if _, err := io.Copy(out, in); err != nil {
		tb.Fatal(err)
	}
	if err := out.Close(); err != nil {
		tb.Fatal(err)
	}
}
