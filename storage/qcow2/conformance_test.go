package qcow2_test

import (
	"context"
	"testing"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/qcow2"
	"github.com/extentd/extentd/storage/storagetest"
)

// TestWritableConformance runs the suite for every kind of image with blocks
// that it can test.
func TestWritableConformance(t *testing.T) {
	for _, tt := range []struct{ name, options string }{
		{"default", ""},
		{"version 2", "compat=0.10"},
		{"512", "cluster_size=512"},
		{"4096", "cluster_size=4096"},
		{"extended", "extended_l2=on"},
		{"data file", "data_file=data"},
		{"raw data file", "data_file=data,data_file_raw=on"},
		{"lazy", "lazy_refcounts=on"},
		{"refcounts of 1", "cluster_size=1k,refcount_bits=1"},
		{"refcounts of 64", "cluster_size=1k,refcount_bits=64"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			storagetest.TestWritableMapper(t, func(t *testing.T, size int64) func(*testing.T) storagetest.WritableImage {
				dir := t.TempDir()
				create(t, dir, "image", size, tt.options)
				w := &written{t: t, dir: dir}
				w.load()
				node := storage.NewNode("image", w.file, storage.NodeOptions{})
				opt := qcow2.Options{}
				if w.data != nil {
					data := storage.NewNode("data", w.data, storage.NodeOptions{})
					opt.OpenData = func(context.Context, string) (*storage.Node, error) { return data, nil }
				}
				return func(t *testing.T) storagetest.WritableImage {
					i, err := qcow2.Open(t.Context(), node, opt)
					if err != nil {
						t.Fatal(err)
					}
					return i
				}
			})
		})
	}
}
