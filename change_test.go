package main

import (
	"encoding/binary"
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestCreateAgreesWithQEMU(t *testing.T) {
	for _, args := range []string{
		"-f raw disk.img 1M",
		"-f raw -o preallocation=falloc disk.img 1M",
		"-f qcow2 disk.qcow2 1M",
		"-f qcow2 disk.qcow2 1.5M",
		"-f qcow2 -o compat=0.10 disk.qcow2 1G",
		"-f qcow2 -o cluster_size=4k,refcount_bits=1,lazy_refcounts=on disk.qcow2 10M",
		"-f qcow2 -o extended_l2=on,compression_type=zstd disk.qcow2 1T",
		"-f qcow2 -o preallocation=metadata,size=64k disk.qcow2",
		"-f qcow2 -o data_file=disk.data,data_file_raw=on disk.qcow2 1M",
		"-f qcow2 -b base.qcow2 -F qcow2 disk.qcow2",
		"-f qcow2 -o backing_file=base.qcow2,backing_fmt=qcow2 disk.qcow2 8M",
	} {
		t.Run(args, func(t *testing.T) {
			words := strings.Fields(args)
			name := words[len(words)-1]
			if !strings.Contains(name, ".") || strings.HasPrefix(name, "1.5") {
				name = words[len(words)-2]
			}
			run := func(create func(args ...string) string) (said, info string) {
				t.Chdir(t.TempDir())
				qemu(t, "qemu-img", "create", "-q", "-f", "qcow2", "base.qcow2", "4M")
				said = create(append([]string{"create"}, words...)...)
				qemu(t, "qemu-img", "info", name)
				return said, qemu(t, "qemu-img", "info", "--output=json", name)
			}
			wantSaid, want := run(func(args ...string) string { return qemu(t, append([]string{"qemu-img"}, args...)...) })
			said, got := run(func(args ...string) string { return succeed(t, args...) })
			if diff := cmp.Diff(wantSaid, said); diff != "" {
				t.Errorf("it says (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(withoutSize(t, want), withoutSize(t, got)); diff != "" {
				t.Errorf("the image (-want +got):\n%s", diff)
			}
			if strings.HasSuffix(name, ".qcow2") {
				qemu(t, "qemu-img", "check", "-q", name)
			}
			if _, errs, code := extentd(t, append([]string{"create"}, words...)...); code != 1 || !strings.Contains(errs, "exists") {
				t.Errorf("a second time: exit code %d, %s", code, errs)
			}
		})
	}
}

// withoutSize leaves out how much of the file is allocated.
func withoutSize(t *testing.T, info string) map[string]any {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal([]byte(info), &m); err != nil {
		t.Fatalf("%v\n%s", err, info)
	}
	delete(m, "actual-size")
	return m
}

func TestCreateJSON(t *testing.T) {
	t.Chdir(t.TempDir())
	out := succeed(t, "create", "--output", "json", "a.qcow2", "3G")
	want := map[string]any{"virtual-size": 3.0 * (1 << 30), "filename": "a.qcow2", "format": "qcow2"}
	if diff := cmp.Diff(want, withoutSize(t, out)); diff != "" {
		t.Error(diff)
	}
}

func TestParseSize(t *testing.T) {
	for text, want := range map[string]int64{
		"0": 0, "1": 1, "512": 512, "7b": 7, "1k": 1 << 10, "1K": 1 << 10, "1.5M": 3 << 19, "10G": 10 << 30, "2E": 2 << 60, "0.5k": 512,
	} {
		if got, err := parseSize(text); err != nil || got != want {
			t.Errorf("%q: %d, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "k", "-1", "1.5", "3E", "1Z", "0x10", "1e3", "1.k5", "1.-5k", "9999999999999999999", "1 M", "1.1e1k", "2.5E"} {
		if got, err := parseSize(text); err == nil {
			t.Errorf("%q: %d", text, got)
		}
	}
}

// setRefcount writes a 16-bit refcount into the first refcount block of an image made
// by qemu-img, and makes the file long enough for the cluster.
func setRefcount(t *testing.T, name string, cluster int64, count uint16) {
	t.Helper()
	const clusterSize, block = 65536, 2 * 65536
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(binary.BigEndian.AppendUint16(nil, count), block+2*cluster); err != nil {
		t.Fatal(err)
	}
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(max(info.Size(), (cluster+1)*clusterSize)); err != nil {
		t.Fatal(err)
	}
}

// TestCheckAgreesWithQEMU: the same text, members and exit code, before and
// after each repair.
func TestCheckAgreesWithQEMU(t *testing.T) {
	for what, test := range map[string]struct {
		damage func(t *testing.T)
		repair []string // that agree
	}{
		"clean": {func(*testing.T) {}, []string{"", "leaks", "all"}},
		"empty": {func(t *testing.T) { qemu(t, "qemu-img", "create", "-q", "-f", "qcow2", "a.qcow2", "1M") }, []string{""}},
		"leaks": {func(t *testing.T) {
			setRefcount(t, "a.qcow2", 9, 1)
			setRefcount(t, "a.qcow2", 12, 1)
		}, []string{"", "leaks", "all"}},
		"compressed": {func(t *testing.T) {
			qemu(t, "qemu-img", "convert", "-c", "-O", "qcow2", "a.qcow2", "b.qcow2")
			if err := os.Rename("b.qcow2", "a.qcow2"); err != nil {
				t.Fatal(err)
			}
		}, []string{""}},
		"old": {func(t *testing.T) {
			qemu(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "compat=0.10", "a.qcow2", "8M")
			qemu(t, "qemu-io", "-c", "write 1M 64k", "-c", "write 0 64k", "a.qcow2")
		}, []string{""}},
	} {
		for _, repair := range test.repair {
			t.Run(what+" "+repair, func(t *testing.T) {
				t.Chdir(t.TempDir())
				qemu(t, "qemu-img", "create", "-q", "-f", "qcow2", "a.qcow2", "4M")
				qemu(t, "qemu-io", "-c", "write 0 64k", "-c", "write 1M 128k", "a.qcow2")
				test.damage(t)
				args := []string{"check"}
				if repair != "" {
					args = append(args, "-r", repair)
				}
				compareChecks(t, args, "--output", "human")
				compareChecks(t, args, "--output", "json")
				compareChecks(t, []string{"check"}, "--output", "json")
			})
		}
	}
}

// compareChecks lets both check a.qcow2, each from the same state.
func compareChecks(t *testing.T, args []string, output ...string) {
	t.Helper()
	before, err := os.ReadFile("a.qcow2")
	if err != nil {
		t.Fatal(err)
	}
	args = append(append(args, output...), "a.qcow2")
	cmd := exec.Command("qemu-img", args...)
	want, _ := cmd.Output()
	wantCode := cmd.ProcessState.ExitCode()
	if err := os.WriteFile("a.qcow2", before, 0o644); err != nil {
		t.Fatal(err)
	}
	got, errs, code := extentd(t, args...)
	diff := cmp.Diff(string(want), got)
	if output[1] == "json" { // QEMU's order is that of a hash table
		diff = cmp.Diff(withoutSize(t, string(want)), withoutSize(t, got))
	}
	if code != wantCode || diff != "" {
		t.Errorf("%v: exit code %d, want %d, %s (-want +got):\n%s", args, code, wantCode, errs, diff)
	}
}

func TestCheckCorruptions(t *testing.T) {
	t.Chdir(t.TempDir())
	qemu(t, "qemu-img", "create", "-q", "-f", "qcow2", "a.qcow2", "4M")
	qemu(t, "qemu-io", "-c", "write 0 64k", "a.qcow2")
	setRefcount(t, "a.qcow2", 5, 0)
	setRefcount(t, "a.qcow2", 8, 1)
	out, errs, code := extentd(t, "check", "a.qcow2")
	if code != 2 || errs == "" || !strings.Contains(out, "errors were found on the image.\nData may be corrupted") {
		t.Errorf("exit code %d\n%s%s", code, out, errs)
	}
	if out, errs, code = extentd(t, "check", "-r", "all", "a.qcow2"); code != 0 || !strings.Contains(out, "No errors were found") {
		t.Errorf("repair: exit code %d\n%s%s", code, out, errs)
	}
	qemu(t, "qemu-img", "check", "-q", "a.qcow2")
	qemu(t, "qemu-io", "-c", "read -P 0xcd 0 64k", "a.qcow2")
}

func TestCheckOfRaw(t *testing.T) {
	t.Chdir(t.TempDir())
	qemu(t, "qemu-img", "create", "-q", "-f", "raw", "a.raw", "1M")
	out, errs, code := extentd(t, "check", "a.raw")
	if code != 63 || out != "" || strings.Count(errs, "\n") != 1 {
		t.Errorf("exit code %d, %q, %q", code, out, errs)
	}
}
