package nbd_test

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// kinds are images of many kinds, 8 MiB each, the same in all of them.
func kinds(t *testing.T) func(dir string) {
	return func(dir string) {
		content := make([]byte, 8*mib)
		copy(content[mib:], random(2*mib+12345))
		copy(content[5*mib:], random(70_000))
		raw(t, "source.raw", content)(dir)
		tools(
			t,
			"cp --sparse=always source.raw sparse.raw",
			"qemu-img convert -f raw -O qcow2 source.raw plain.qcow2",
			"qemu-img convert -f raw -O qcow2 -c source.raw zlib.qcow2",
			"qemu-img convert -f raw -O qcow2 -c -o compression_type=zstd source.raw zstd.qcow2",
			"qemu-img convert -f raw -O qcow2 -o compat=0.10 source.raw old.qcow2",
			"qemu-img convert -f raw -O qcow2 -o cluster_size=4k source.raw small.qcow2",
			"qemu-img convert -f raw -O qcow2 -o extended_l2=on,cluster_size=128k source.raw subclusters.qcow2",
			"qemu-img create -q -f qcow2 -b plain.qcow2 -F qcow2 overlay.qcow2",
			"qemu-img create -q -f qcow2 -b zlib.qcow2 -F qcow2 overlay2.qcow2",
		)(dir)
	}
}

var kindNames = []string{
	"source.raw", "sparse.raw", "plain.qcow2", "zlib.qcow2", "zstd.qcow2", "old.qcow2", "small.qcow2", "subclusters.qcow2", "overlay.qcow2", "overlay2.qcow2",
}

func format(name string) string { return strings.TrimPrefix(filepath.Ext(name), ".") }

// TestQEMUReads: what qemu-img finds over NBD is what it finds in the file.
func TestQEMUReads(t *testing.T) {
	v := serve(t, setup{}, kinds(t))
	for _, name := range kindNames {
		t.Run(name, func(t *testing.T) {
			run(t, v.dir, "qemu-img", "compare", "-f", format(name), "-F", "raw", name, v.uri(name))
			var info struct {
				Size int64 `json:"virtual-size"`
			}
			decode(t, run(t, v.dir, "qemu-img", "info", "--output=json", v.uri(name)), &info)
			if info.Size != 8*mib {
				t.Error(info.Size)
			}
			local, remote := zeros(t, run(t, v.dir, "qemu-img", "map", "--output=json", "-f", format(name), name)),
				zeros(t, run(t, v.dir, "qemu-img", "map", "--output=json", "-f", "raw", v.uri(name)))
			if diff := cmp.Diff(local, remote); diff != "" {
				t.Error(diff)
			}
			run(t, v.dir, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", v.uri(name), "copy.qcow2")
			run(t, v.dir, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", "source.raw", "copy.qcow2")
		})
	}
}

// An extent is one of a map that tells zeros alone.
type extent struct {
	Start, Length int64
	Zero          bool
}

func zeros(t *testing.T, text string) []extent {
	t.Helper()
	var all, merged []extent
	decode(t, text, &all)
	for _, e := range all {
		if last := len(merged) - 1; last >= 0 && merged[last].Zero == e.Zero {
			merged[last].Length += e.Length
			continue
		}
		merged = append(merged, e)
	}
	return merged
}

func decode(t *testing.T, text string, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), into); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
}

// TestDepthAsQEMU compares qemu:allocation-depth with qemu-nbd's.
func TestDepthAsQEMU(t *testing.T) {
	v := serve(t, setup{}, layer(t), kinds(t))
	for _, name := range []string{"top.qcow2", "base.qcow2", "overlay.qcow2", "plain.qcow2", "sparse.raw", "zlib.qcow2"} {
		remote := run(t, v.dir, "nbdinfo", "--map=qemu:allocation-depth", v.uri(name))
		// nbdinfo runs the server itself, on a socket that it makes.
		local := run(t, v.dir, "nbdinfo", "--map=qemu:allocation-depth", "--",
			"[", "qemu-nbd", "--read-only", "--allocation-depth", "--format", format(name), name, "]")
		if diff := cmp.Diff(local, remote); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func TestNbdinfo(t *testing.T) {
	v := serve(t, setup{tcp: true}, kinds(t))
	type export struct {
		Name  string   `json:"export-name"`
		Size  int64    `json:"export-size"`
		Multi bool     `json:"can_multi_conn"`
		DF    bool     `json:"can_df"`
		Text  string   `json:"description"`
		Kinds []string `json:"contexts"`
	}
	var list struct{ Exports []export }
	decode(t, run(t, v.dir, "nbdinfo", "--list", "--json", v.uri("")), &list)
	if len(list.Exports) != len(kindNames) {
		t.Errorf("%d exports", len(list.Exports))
	}
	want := export{"zlib.qcow2", 8 * mib, true, true, "qcow2 image", []string{"base:allocation", "qemu:allocation-depth"}}
	decode(t, run(t, v.dir, "nbdinfo", "--json", v.uri("zlib.qcow2")), &list)
	if diff := cmp.Diff([]export{want}, list.Exports); diff != "" {
		t.Error(diff)
	}
	for _, can := range []string{"write", "cache", "df", "fast-zero", "flush", "fua", "multi-conn", "trim", "zero", "structured-reply"} {
		run(t, v.dir, "nbdinfo", "--can", can, v.uri("plain.qcow2"))
	}
	if _, err := try(t, v.dir, "nbdinfo", "--is", "read-only", v.uri("plain.qcow2")); err == nil {
		t.Error("read-only")
	}
	if out := run(t, v.dir, "nbdinfo", "--map", v.uri("sparse.raw")); !strings.Contains(out, "hole,zero") || !strings.Contains(out, "data") {
		t.Error(out)
	}
}

// TestNbdcopy copies in both directions, over one connection and over many.
func TestNbdcopy(t *testing.T) {
	v := serve(t, setup{}, kinds(t), tools(t, "truncate -s 8M target.raw"))
	for _, options := range []string{"--connections=1", "--connections=4", "--connections=8 --allocated --request-size=65536", "--synchronous"} {
		args := append([]string{"nbdcopy", "--flush"}, strings.Fields(options)...)
		for _, name := range []string{"sparse.raw", "overlay2.qcow2", "small.qcow2"} {
			run(t, v.dir, append(args, v.uri(name), "copy.raw")...)
			run(t, v.dir, "cmp", "source.raw", "copy.raw")
		}
		for _, target := range []string{"target.raw", "subclusters.qcow2"} {
			run(t, v.dir, append(args, "source.raw", v.uri(target))...)
			run(t, v.dir, append(args, v.uri(target), "copy.raw")...)
			run(t, v.dir, "cmp", "source.raw", "copy.raw")
		}
	}
}

// TestQEMUWrites: what qemu-io writes is there for qemu-img, once the server has
// let go of the image.
func TestQEMUWrites(t *testing.T) {
	v := serve(t, setup{}, kinds(t))
	for _, name := range []string{"sparse.raw", "zstd.qcow2", "small.qcow2", "old.qcow2", "subclusters.qcow2", "overlay.qcow2"} {
		commands := []string{
			"write -P 3 1000 70000", "write -z 2M 1M", "write -z -u 3M 64k", "discard 4M 1M", "write -f -P 5 5000001 3", "aio_write -P 6 6M 512k",
			"aio_flush", "flush", "read -P 3 1000 70000", "read -P 0 2M 1M", "read -P 6 6M 512k",
		}
		args := []string{"qemu-io", "-f", "raw"}
		for _, command := range commands {
			args = append(args, "-c", command)
		}
		if out := run(t, v.dir, append(args, v.uri(name))...); strings.Contains(out, "fail") {
			t.Errorf("%s: %s", name, out)
		}
		run(t, v.dir, "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", v.uri("source.raw"), v.uri(name))
		run(t, v.dir, "qemu-img", "compare", v.uri("source.raw"), v.uri(name))
	}
	v.Close()
	if err := v.svc.Close(); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"zstd.qcow2", "small.qcow2", "old.qcow2", "subclusters.qcow2", "overlay.qcow2"} {
		run(t, v.dir, "qemu-img", "check", name)
		run(t, v.dir, "qemu-img", "compare", "source.raw", name)
	}
}
