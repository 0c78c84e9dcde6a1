package main

import (
	"bytes"
	"os/exec"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// extentd runs a command line in the working directory.
func extentd(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), args, &out, &errs)
	return out.String(), errs.String(), code
}

// qemu runs qemu-img or qemu-io in the working directory.
func qemu(t *testing.T, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(args[0]); err != nil {
		t.Fatalf("%v: apt-get install qemu-utils", err)
	}
	cmd := exec.Command(args[0], args[1:]...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, &stderr)
	}
	return string(out)
}

func TestVersion(t *testing.T) {
	out, errs, code := extentd(t, "version")
	if code != 0 || errs != "" || !strings.HasPrefix(out, "extentd ") || strings.Count(out, "\n") != 1 {
		t.Errorf("exit code %d\n%s%s", code, out, errs)
	}
}

// TestFailures: one line on standard error, and nothing but that.
func TestFailures(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"frobnicate"}, "unknown command"},
		{[]string{"serve", "a", "b"}, "at most 1 arg"},
		{[]string{"serve", "--frobnicate"}, "unknown flag"},
		{[]string{"serve", "missing"}, "missing"},
		{[]string{"serve", "--listen", "0.0.0.0:0", "."}, "--insecure"},
		{[]string{"serve", "--log-level", "loud", "."}, "log-level"},
		{[]string{"serve", "--follow-backing", "all", "."}, "follow-backing"},
		{[]string{"serve", "--image", "x", "."}, "NAME=PATH"},
		{[]string{"serve", "--image", "x=y.vmdk", "."}, "y.vmdk"},
		{[]string{"serve", "--listen", "127.0.0.1:99999", "."}, "99999"},
		{[]string{"health", "--listen", "127.0.0.1:1"}, "refused"},
		{[]string{"health", "--listen", "nonsense"}, "listen"},
		{[]string{"info"}, "accepts 1 arg"},
		{[]string{"info", "missing.qcow2"}, "missing.qcow2"},
		{[]string{"info", "disk"}, "--format"},
		{[]string{"info", "--format", "vmdk", "disk"}, "vmdk"},
		{[]string{"map", "--output", "xml", "disk.raw"}, "xml"},
		{[]string{"map", "."}, "--format"},
		{[]string{"check", "missing.qcow2"}, "missing.qcow2"},
		{[]string{"check", "-r", "most", "missing.qcow2"}, "repair"},
		{[]string{"create", "x.qcow2"}, "size"},
		{[]string{"create", "x", "1M"}, "format"},
		{[]string{"create", "-f", "vmdk", "x", "1M"}, "vmdk"},
		{[]string{"create", "x.raw", "1Z"}, "1Z"},
		{[]string{"create", "x.raw", "-o", "cluster_size=64k", "1M"}, "cluster_size"},
		{[]string{"create", "x.raw", "-o", "colour=blue", "1M"}, "colour"},
		{[]string{"create", "x.qcow2", "-o", "extended_l2=perhaps", "1M"}, "on or off"},
		{[]string{"create", "x.raw", "-b", "y.raw", "1M"}, "backing"},
		{[]string{"create", "x.qcow2", "-b", "missing.raw", "1M"}, "missing.raw"},
		{[]string{"create", "x.qcow2", "-F", "raw", "1M"}, "backing"},
		{[]string{"create", "missing/x.raw", "1M"}, "missing"},
		{[]string{"map", "--format", "raw", "."}, "regular file"},
	} {
		out, errs, code := extentd(t, test.args...)
		if code != 1 || out != "" || !strings.HasPrefix(errs, "extentd: ") || strings.Count(errs, "\n") != 1 || !strings.Contains(errs, test.want) {
			t.Errorf("%v: exit code %d, %q, %q, want %q", test.args, code, out, errs, test.want)
		}
	}
}
