package qcow2_test

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

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/qcow2"
	"github.com/extentd/extentd/storage/storagetest"
)

type createCase struct {
	name string
	opt  qcow2.CreateOptions
	qemu string // the same for qemu-img
}

func createCases() []createCase {
	type o = qcow2.CreateOptions
	cases := []createCase{
		{"default", o{}, ""},
		{"one byte", o{Size: 1}, ""},
		{"odd", o{Size: 5*mib + 700}, ""},
		{"v2", o{Version: 2}, "compat=0.10"},
		{"v3", o{Version: 3}, "compat=1.1"},
		{"zstd", o{CompressionType: "zstd"}, "compression_type=zstd"},
		{"zlib", o{CompressionType: "zlib"}, "compression_type=zlib"},
		{"lazy", o{LazyRefcounts: true}, "lazy_refcounts=on"},
		{"extended", o{ExtendedL2: true}, "extended_l2=on"},
		{"extended 16k", o{ExtendedL2: true, ClusterSize: 16 * kib}, "extended_l2=on,cluster_size=16k"},
		{"extended 2M", o{ExtendedL2: true, ClusterSize: 2 * mib}, "extended_l2=on,cluster_size=2M"},
		{"backing", o{Backing: "base.raw", BackingFormat: "raw"}, "backing_file=base.raw,backing_fmt=raw"},
		{"backing v2", o{Version: 2, Backing: "base.raw", BackingFormat: "raw"}, "compat=0.10,backing_file=base.raw,backing_fmt=raw"},
		{"backing 512", o{ClusterSize: 512, Backing: "base.raw", BackingFormat: "raw"}, "cluster_size=512,backing_file=base.raw,backing_fmt=raw"},
		{"data file", o{DataFile: "data"}, "data_file=data"},
		{"raw data file", o{DataFile: "data", DataFileRaw: true}, "data_file=data,data_file_raw=on"},
		{"raw data file 512", o{DataFile: "data", DataFileRaw: true, ClusterSize: 512}, "data_file=data,data_file_raw=on,cluster_size=512"},
		{"raw extended data file", o{DataFile: "data", DataFileRaw: true, ExtendedL2: true}, "data_file=data,data_file_raw=on,extended_l2=on"},
		{"data file backing", o{DataFile: "data", Backing: "base.raw", BackingFormat: "raw"}, "data_file=data,backing_file=base.raw,backing_fmt=raw"},
		{"extended backing metadata", o{ExtendedL2: true, Backing: "base.raw", BackingFormat: "raw", Preallocation: "metadata"}, "extended_l2=on,backing_file=base.raw,backing_fmt=raw,preallocation=metadata"},
		{"extended backing full", o{ExtendedL2: true, Backing: "base.raw", BackingFormat: "raw", Preallocation: "full"}, "extended_l2=on,backing_file=base.raw,backing_fmt=raw,preallocation=full"},
		{"all", o{ExtendedL2: true, LazyRefcounts: true, CompressionType: "zstd", RefcountBits: 64, ClusterSize: 128 * kib}, "extended_l2=on,lazy_refcounts=on,compression_type=zstd,refcount_bits=64,cluster_size=128k"},
	}
	for bits := 1; bits <= 64; bits *= 2 {
		cases = append(cases,
			createCase{fmt.Sprintf("%d bits 512 metadata", bits), o{RefcountBits: bits, ClusterSize: 512, Preallocation: "metadata"}, fmt.Sprintf("refcount_bits=%d,cluster_size=512,preallocation=metadata", bits)})
	}
	for _, size := range []int64{512, 4 * kib, 8 * kib, 2 * mib} {
		cases = append(cases, createCase{fmt.Sprintf("cluster %d", size), o{ClusterSize: size}, fmt.Sprintf("cluster_size=%d", size)})
	}
	for _, p := range []string{"off", "metadata", "falloc", "full"} {
		for _, more := range []createCase{
			{"", o{}, ""},
			{" v2", o{Version: 2}, ",compat=0.10"},
			{" extended", o{ExtendedL2: true}, ",extended_l2=on"},
			{" data file", o{DataFile: "data"}, ",data_file=data"},
			{" 4k", o{ClusterSize: 4 * kib}, ",cluster_size=4k"},
		} {
			more.opt.Preallocation = p
			cases = append(cases, createCase{p + more.name, more.opt, "preallocation=" + p + more.qemu})
		}
	}
	return cases
}

// createOurs makes dir/name, with its data file.
func createOurs(t testing.TB, dir, name string, opt qcow2.CreateOptions) {
	t.Helper()
	if opt.DataFile != "" {
		opt.DataNode = writableNode(t, dir, opt.DataFile)
	}
	if err := qcow2.Create(t.Context(), writableNode(t, dir, name), opt); err != nil {
		t.Fatal(err)
	}
}

// imageInfo is what qemu-img info says that does not differ between images made
// alike.
func imageInfo(t testing.TB, dir, name string) map[string]any {
	t.Helper()
	var info map[string]any
	if err := json.Unmarshal([]byte(run(t, dir, "qemu-img", "info", "--output=json", name)), &info); err != nil {
		t.Fatal(err)
	}
	delete(info, "actual-size")
	return info
}

// TestCreate: what we make is what qemu-img makes, and can be written to.
func TestCreate(t *testing.T) {
	for _, c := range createCases() {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if c.opt.Size == 0 {
				c.opt.Size = 3*mib + 512
			}
			ours, theirs := t.TempDir(), t.TempDir()
			for _, dir := range []string{ours, theirs} {
				if err := os.WriteFile(filepath.Join(dir, "base.raw"), make([]byte, 2*mib), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			createOurs(t, ours, "image", c.opt)
			create(t, theirs, "image", c.opt.Size, c.qemu)
			if diff := cmp.Diff(imageInfo(t, theirs, "image"), imageInfo(t, ours, "image")); diff != "" {
				t.Errorf("qemu-img info of theirs (-) and ours (+):\n%s", diff)
			}
			metadata := c.opt.Preallocation == "metadata"
			if diff := cmp.Diff(mapWithoutOffsets(t, theirs, metadata), mapWithoutOffsets(t, ours, metadata)); diff != "" {
				t.Errorf("qemu-img map of theirs (-) and ours (+):\n%s", diff)
			}
			if res := sameCheck(t, ours, "image"); !res.Clean() {
				t.Errorf("not clean: %v", res.Errors)
			}
			run(t, ours, "qemu-img", "compare", "image", filepath.Join(theirs, "image"))
			i := openDisk(t, ours, "image")
			if info := i.Info(); info.DataFile != c.opt.DataFile || info.BackingFile != c.opt.Backing {
				t.Errorf("Info = %+v", info)
			}
			if c.opt.Size > mib {
				qemuIO(t, ours, "image", "write -P 7 300k 900k", "write -z 2M 100k", "read -P 7 300k 900k")
				if res := sameCheck(t, ours, "image"); !res.Clean() {
					t.Errorf("not clean after writing: %v", res.Errors)
				}
			}
		})
	}
}

func mapWithoutOffsets(t testing.TB, dir string, metadata bool) []mapEntry {
	t.Helper()
	entries := qemuMap(t, dir, "image")
	for k := range entries {
		entries[k].Offset = nil
		if metadata { // whether zeros are seen depends on the holes that the file has
			entries[k].Zero = false
		}
	}
	return merge(entries)
}

// TestCreateInvalid: what cannot be is refused before anything is written, and
// by qemu-img too.
func TestCreateInvalid(t *testing.T) {
	type o = qcow2.CreateOptions
	long := func(n int) string { return strings.Repeat("n", n) }
	for _, c := range []struct {
		createCase
		field string
	}{
		{createCase{"negative size", o{Size: -1}, "-"}, "size"},
		{createCase{"size beyond all", o{Size: 1<<61 + 1, ClusterSize: 2 * mib}, "cluster_size=2M"}, "size"},
		{createCase{"size beyond 512", o{Size: 128*gib + 1, ClusterSize: 512}, "cluster_size=512"}, "size"},
		{createCase{"size beyond 64k", o{Size: 2*pib + 1}, ""}, "size"},
		{createCase{"size beyond extended", o{Size: pib + 1, ExtendedL2: true}, "extended_l2=on"}, "size"},
		{createCase{"cluster 256", o{ClusterSize: 256}, "cluster_size=256"}, "cluster_size"},
		{createCase{"cluster 4M", o{ClusterSize: 4 * mib}, "cluster_size=4M"}, "cluster_size"},
		{createCase{"cluster 1000", o{ClusterSize: 1000}, "cluster_size=1000"}, "cluster_size"},
		{createCase{"negative cluster", o{ClusterSize: -1}, "cluster_size=-1"}, "cluster_size"},
		{createCase{"extended 8k", o{ClusterSize: 8 * kib, ExtendedL2: true}, "cluster_size=8k,extended_l2=on"}, "cluster_size"},
		{createCase{"3 bits", o{RefcountBits: 3}, "refcount_bits=3"}, "refcount_bits"},
		{createCase{"128 bits", o{RefcountBits: 128}, "refcount_bits=128"}, "refcount_bits"},
		{createCase{"negative bits", o{RefcountBits: -16}, "-"}, "refcount_bits"},
		{createCase{"v1", o{Version: 1}, "compat=0.9"}, "compat"},
		{createCase{"v4", o{Version: 4}, "compat=v4"}, "compat"},
		{createCase{"lz4", o{CompressionType: "lz4"}, "compression_type=lz4"}, "compression_type"},
		{createCase{"v2 lazy", o{Version: 2, LazyRefcounts: true}, "compat=0.10,lazy_refcounts=on"}, "lazy_refcounts"},
		{createCase{"v2 extended", o{Version: 2, ExtendedL2: true}, "compat=0.10,extended_l2=on"}, "extended_l2"},
		{createCase{"v2 bits", o{Version: 2, RefcountBits: 8}, "compat=0.10,refcount_bits=8"}, "refcount_bits"},
		{createCase{"v2 zstd", o{Version: 2, CompressionType: "zstd"}, "compat=0.10,compression_type=zstd"}, "compression_type"},
		{createCase{"v2 data file", o{Version: 2, DataFile: "data"}, "compat=0.10,data_file=data"}, "data_file"},
		{createCase{"raw without data file", o{DataFileRaw: true}, "data_file_raw=on"}, "data_file_raw"},
		{createCase{"raw with backing", o{DataFile: "data", DataFileRaw: true, Backing: "base.raw", BackingFormat: "raw"}, "data_file=data,data_file_raw=on,backing_file=base.raw,backing_fmt=raw"}, "data_file_raw"},
		{createCase{"format alone", o{BackingFormat: "raw"}, "backing_fmt=raw"}, "backing_format"},
		{createCase{"backing alone", o{Backing: "base.raw"}, "backing_file=base.raw"}, "backing_format"},
		{createCase{"long backing", o{Backing: long(1024), BackingFormat: "raw"}, "backing_fmt=raw,backing_file=" + long(1024)}, "backing"},
		{createCase{"backing beyond the cluster", o{ClusterSize: 512, Backing: long(400), BackingFormat: "raw"}, "-"}, "backing"},
		{createCase{"NUL in backing", o{Backing: "a\x00b", BackingFormat: "raw"}, "-"}, "backing"},
		{createCase{"long format", o{Backing: "base.raw", BackingFormat: long(16)}, "backing_file=base.raw,backing_fmt=" + long(16)}, "backing_format"},
		{createCase{"data file beyond the cluster", o{ClusterSize: 512, DataFile: long(400)}, "-"}, "data_file"},
		{createCase{"long data file", o{DataFile: long(4096)}, "-"}, "data_file"},
		{createCase{"preallocation", o{Preallocation: "some"}, "preallocation=some"}, "preallocation"},
		{createCase{"preallocation with backing", o{Preallocation: "metadata", Backing: "base.raw", BackingFormat: "raw"}, "preallocation=metadata,backing_file=base.raw,backing_fmt=raw"}, "preallocation"},
		{createCase{"preallocation beyond refcounts", o{Size: 100 * gib, ClusterSize: 512, RefcountBits: 64, Preallocation: "metadata"}, "-"}, "preallocation"},
		{createCase{"preallocation of an absent file", o{DataFile: "data", Preallocation: "full"}, "-"}, "preallocation"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.opt.Size == 0 {
				c.opt.Size = mib
			}
			f := storagetest.NewMemFile(nil)
			err := qcow2.Create(t.Context(), storage.NewNode("image", f, storage.NodeOptions{}), c.opt)
			var invalid *storage.InvalidError
			if !errors.As(err, &invalid) || invalid.Field != c.field {
				t.Fatalf("Create = %v, want an invalid %s", err, c.field)
			}
			if size, _ := f.Size(t.Context()); size != 0 {
				t.Errorf("%d bytes were written", size)
			}
			if c.qemu == "-" { // has no such option, or says it otherwise
				return
			}
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "base.raw"), make([]byte, mib), 0o600); err != nil {
				t.Fatal(err)
			}
			args := []string{"create", "-f", "qcow2"}
			if c.qemu != "" {
				args = append(args, "-o", c.qemu)
			}
			if out, err := try(t, dir, "qemu-img", append(args, "image", fmt.Sprint(c.opt.Size))...); err == nil {
				t.Errorf("qemu-img does it: %s", out)
			}
		})
	}
}

// TestCreateLarge: the largest sizes, and preallocation of much, take little.
func TestCreateLarge(t *testing.T) {
	type o = qcow2.CreateOptions
	for _, c := range []createCase{
		{"512", o{Size: 128 * gib, ClusterSize: 512}, ""},
		{"2M", o{Size: 2 * eib, ClusterSize: 2 * mib}, ""},
		{"nothing", o{Size: 0}, ""},
		{"metadata", o{Size: 16 * gib, Preallocation: "metadata"}, ""},
		{"metadata 1 bit 4k", o{Size: 2 * gib, Preallocation: "metadata", ClusterSize: 4 * kib, RefcountBits: 1}, ""},
		{"raw", o{Size: tib, DataFile: "data", DataFileRaw: true, ClusterSize: 2 * mib}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			createOurs(t, dir, "image", c.opt)
			if size := openDisk(t, dir, "image").Size(); size != c.opt.Size {
				t.Errorf("Size() = %d, want %d", size, c.opt.Size)
			}
			if res := sameCheck(t, dir, "image"); !res.Clean() {
				t.Errorf("not clean: %v", res.Errors)
			}
		})
	}
}

// TestCreateCut: wherever making an image fails, what is left is no image.
func TestCreateCut(t *testing.T) {
	opt := qcow2.CreateOptions{Size: 4 * mib, ClusterSize: 4 * kib, Preallocation: "full", Backing: "base", BackingFormat: "raw", ExtendedL2: false}
	opt.Backing, opt.BackingFormat = "", ""
	for _, kind := range []storagetest.OpKind{storagetest.OpWrite, storagetest.OpTruncate, storagetest.OpFlush} {
		for nth := int64(1); ; nth++ {
			f := storagetest.NewMemFileWith(storagetest.MemOptions{Hook: storagetest.FailNth(kind, nth, syscall.EIO)})
			err := qcow2.Create(t.Context(), storage.NewNode("image", f, storage.NodeOptions{}), opt)
			if err == nil {
				if nth == 1 {
					t.Errorf("%v was not asked for", kind)
				}
				break
			}
			if !errors.Is(err, syscall.EIO) {
				t.Fatalf("Create = %v, want %v", err, syscall.EIO)
			}
			head := make([]byte, 4)
			n, err := f.ReadAt(t.Context(), head, 0)
			if err != nil && !errors.Is(err, io.EOF) {
				t.Fatal(err)
			}
			flushed := kind == storagetest.OpFlush && nth == 2 // the last one: all is written
			if !flushed && n == 4 && string(head) != "\x00\x00\x00\x00" {
				t.Errorf("after operation %d of kind %v failed, the file begins with %q", nth, kind, head)
			}
		}
	}
	f := storagetest.NewMemFile([]byte("something"))
	if err := qcow2.Create(t.Context(), storage.NewNode("image", f, storage.NodeOptions{}), opt); !errors.Is(err, storage.ErrConflict) {
		t.Errorf("Create in a file that is not empty = %v, want %v", err, storage.ErrConflict)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := qcow2.Create(ctx, memNode(nil), opt); !errors.Is(err, context.Canceled) {
		t.Errorf("Create = %v, want %v", err, context.Canceled)
	}
}
