package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/spf13/pflag"
)

// load parses a command line of serve.
func configure(t *testing.T, args ...string) (Config, error) {
	t.Helper()
	flags := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	configFlags(flags)
	if err := flags.Parse(args); err != nil {
		t.Fatal(err)
	}
	return loadConfig(flags, flags.Args())
}

func defaults() Config {
	return Config{
		Dir: "images", Listen: "127.0.0.1:7080", FollowBacking: "root",
		Idle: 30 * time.Second, MaxOpen: 256, LogLevel: "info",
		TLS:  ListenConfig{SocketMode: "0660", Grace: 10 * time.Second},
		Load: LoadConfig{MaxConnections: 4096, MaxMemory: byteSize(defaultMaxMemory).String(), Stall: time.Minute},
	}
}

func TestConfigDefaults(t *testing.T) {
	t.Chdir(t.TempDir())
	got, err := configure(t)
	if diff := cmp.Diff(defaults(), got, cmpopts.EquateEmpty(), cmpopts.IgnoreUnexported(LoadConfig{})); err != nil || diff != "" {
		t.Fatalf("%v\n%s", err, diff)
	}
	if info, err := os.Stat("images"); err != nil || !info.IsDir() {
		t.Errorf("the default directory was not created: %v", err)
	}
	if _, err := configure(t, "elsewhere"); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat("elsewhere"); err == nil {
		t.Error("a directory that was named was created")
	}
}

func TestConfigOrder(t *testing.T) {
	t.Chdir(t.TempDir())
	file := `
dir: from-file
listen: 127.0.0.1:1
idle: 1m
log-level: debug
max-open: 7
image: ["a=a,,b.raw,format=raw", "c=c.raw"]
backing-dir: /one
`
	if err := os.WriteFile("extentd.yaml", []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	want := defaults()
	want.Dir, want.Listen, want.Idle, want.LogLevel, want.MaxOpen = "from-file", "127.0.0.1:1", time.Minute, "debug", 7
	want.Image, want.BackingDir = []string{"a=a,,b.raw,format=raw", "c=c.raw"}, []string{"/one"}
	check := func(what string, args ...string) {
		t.Helper()
		got, err := configure(t, args...)
		if diff := cmp.Diff(want, got, cmpopts.EquateEmpty(), cmpopts.IgnoreUnexported(LoadConfig{})); err != nil || diff != "" {
			t.Errorf("%s: %v\n%s", what, err, diff)
		}
	}
	check("file", "--config", "extentd.yaml")
	t.Setenv("EXTENTD_CONFIG", "extentd.yaml")
	check("file named by the environment")
	t.Setenv("EXTENTD_LISTEN", "127.0.0.1:2")
	t.Setenv("EXTENTD_BACKING_DIR", "/two;/three")
	t.Setenv("EXTENTD_DEBUG", "true")
	t.Setenv("EXTENTD_SERVICE_HOST", "10.0.0.1") // as Kubernetes sets it
	t.Setenv("EXTENTD_PORT", "tcp://10.0.0.1:7080")
	want.Listen, want.BackingDir, want.Debug = "127.0.0.1:2", []string{"/two", "/three"}, true
	check("environment")
	want.Listen, want.Idle, want.Dir = "127.0.0.1:3", 2*time.Second, "from-argument"
	want.BackingDir = []string{"/four,five", "/six"}
	check("flags", "--listen", "127.0.0.1:3", "--idle=2s", "--backing-dir", "/four,five", "--backing-dir=/six", "from-argument")
}

func TestNoDefaultDirectory(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, args := range [][]string{{"--image", "a=a.raw"}, {"--config", os.DevNull}} {
		got, err := configure(t, args...)
		if err != nil || got.Dir != "" {
			t.Errorf("%v: %q, %v", args, got.Dir, err)
		}
	}
	if _, err := os.Stat("images"); err == nil {
		t.Error("the default directory was created")
	}
}

func TestConfigRefusals(t *testing.T) {
	dir := t.TempDir()
	file := func(text string) string {
		path := filepath.Join(dir, strings.Map(func(r rune) rune {
			if r >= 'a' && r <= 'z' {
				return r
			}
			return -1
		}, text)+".yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"--config", filepath.Join(dir, "missing.yaml")}, "no such file"},
		{[]string{"--config", file("listn: 127.0.0.1:0")}, `unknown key "listn"`},
		{[]string{"--config", file("config: x")}, `unknown key "config"`},
		{[]string{"--config", file("listen: {a: b}")}, "unknown key"},
		{[]string{"--config", file("idle: soon")}, "idle"},
		{[]string{"--config", file("[")}, "yaml"},
		{[]string{"--listen", "0.0.0.0:7080"}, "--insecure"},
		{[]string{"--listen", ":7080"}, "--insecure"},
		{[]string{"--listen", "[::]:7080"}, "--insecure"},
		{[]string{"--listen", "10.1.2.3:7080"}, "--insecure"},
		{[]string{"--listen", "example.org:7080"}, "--insecure"},
		{[]string{"--listen", "7080"}, "listen"},
		{[]string{"--idle", "0s"}, "idle"},
		{[]string{"--idle", "-1s"}, "idle"},
		{[]string{"--max-open", "0"}, "max-open"},
	} {
		if got, err := configure(t, append(test.args, dir)...); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%v: %+v, %v, want %q", test.args, got, err, test.want)
		}
	}
	for _, addr := range []string{"127.0.0.1:0", "127.8.9.1:7080", "[::1]:0", "localhost:80"} {
		if _, err := configure(t, "--listen", addr, dir); err != nil {
			t.Error(err)
		}
	}
	if _, err := configure(t, "--listen", ":0", "--insecure", dir); err != nil {
		t.Error(err)
	}
	if _, err := configure(t, "--admin-listen", ":0", dir); err != nil { // it serves no image
		t.Error(err)
	}
}

func TestConfigState(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, test := range []struct {
		args     []string
		want     string
		readOnly bool
	}{
		{[]string{"d"}, "d/.extentd", false},
		{[]string{"--state", "s", "d"}, "s", false},
		{[]string{"--read-only", "d"}, "", true},
		{[]string{"--read-only", "--state", "s", "d"}, "s", true}, // tickets are kept
		{[]string{"--image", "a=a.raw"}, "", false},
		{[]string{"--image", "a=a.raw", "--state", "s"}, "s", false},
	} {
		c, err := configure(t, test.args...)
		if err != nil {
			t.Fatal(err)
		}
		opt, err := c.service(wiring{})
		if err != nil || c.state() != test.want || opt.ReadOnly != test.readOnly {
			t.Errorf("%v: %q, %v, %v", test.args, c.state(), opt.ReadOnly, err)
		}
	}
	if entries, err := os.ReadDir("."); err != nil || len(entries) > 0 {
		t.Errorf("%v was made, %v", entries, err)
	}
}
