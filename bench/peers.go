package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
)

// findPeers reports what is missing, with the line that installs it.
func findPeers() error {
	packages := map[string]string{
		"nginx": "nginx-light", "wrk": "wrk", "curl": "curl",
		"qemu-img": "qemu-utils", "qemu-nbd": "qemu-utils", "qemu-io": "qemu-utils", "nbdcopy": "libnbd-bin", "nbdinfo": "libnbd-bin",
		"nbdkit": "nbdkit", "fio": "fio",
	}
	var missing []string
	for tool, name := range packages {
		if _, err := exec.LookPath(tool); err != nil {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("peers are missing: apt-get install %s", strings.Join(missing, " "))
	}
	return nil
}

// machine is one line that says what the numbers were measured on.
func machine(ctx context.Context) string {
	var u syscall.Utsname
	_ = syscall.Uname(&u)
	var release []byte
	for _, c := range u.Release {
		if c == 0 {
			break
		}
		release = append(release, byte(c))
	}
	parts := []string{fmt.Sprintf("%d CPUs", runtime.NumCPU()), cpuModel(), "Linux " + string(release), runtime.Version()}
	for _, c := range [][]string{{"nginx", "-v"}, {"wrk", "-v"}, {"curl", "--version"}, {"qemu-img", "--version"}, {"nbdcopy", "--version"}, {"nbdkit", "--version"}, {"fio", "--version"}} {
		parts = append(parts, firstLine(ctx, c...))
	}
	load, _ := os.ReadFile("/proc/loadavg")
	average, _, _ := strings.Cut(string(load), " ")
	return strings.Join(append(parts, "load average before "+average), "; ")
}

func cpuModel() string {
	info, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(info)) {
		if name, ok := strings.CutPrefix(line, "model name"); ok {
			return strings.TrimSpace(strings.TrimLeft(name, " \t:"))
		}
	}
	return runtime.GOARCH
}

// firstLine is the first line that a command prints, cut to name and version.
func firstLine(ctx context.Context, args ...string) string {
	out, _ := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput() // wrk -v fails
	line, _, _ := strings.Cut(string(out), "\n")
	words := strings.Fields(strings.NewReplacer("nginx version: ", "", " version", "").Replace(line))
	return strings.Join(words[:min(2, len(words))], " ")
}
