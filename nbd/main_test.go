package nbd_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/extentd/extentd/nbd"
	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var readOnly = nbd.Options{ReadOnly: true}

// quiet is for tests in which much goes wrong.
var quiet = nbd.Options{Logger: slog.New(slog.DiscardHandler)}

// A server is one under test, of the images in a directory.
type server struct {
	*nbd.Server
	svc              *service.Service
	dir              string
	network, address string
}

// A setup says what is not as usual.
type setup struct {
	options nbd.Options
	service service.Options
	tcp     bool
}

// serve starts a server of a new directory, which files fills first. It is closed
// at the end, and everything must have ended then.
func serve(t testing.TB, with setup, files ...func(dir string)) *server {
	t.Helper()
	v := &server{dir: t.TempDir(), network: "unix"}
	for _, fill := range files {
		fill(v.dir)
	}
	with.service.Dir = v.dir
	with.service.Check = true
	if with.service.Formats == nil {
		with.service.Formats = map[string]service.Driver{"raw": service.RawDriver(), "qcow2": service.QCOW2Driver()}
	}
	if with.service.Recheck == 0 {
		with.service.Recheck = -1
	}
	var err error
	if v.svc, err = service.New(with.service); err != nil {
		t.Fatal(err)
	}
	if with.options.Logger == nil {
		with.options.Logger = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	}
	v.Server = nbd.New(v.svc, with.options)
	v.address = filepath.Join(v.dir, ".socket")
	if with.tcp {
		v.network, v.address = "tcp", "127.0.0.1:0"
	}
	l, err := net.Listen(v.network, v.address)
	if err != nil {
		t.Fatal(err)
	}
	v.address = l.Addr().String()
	served := make(chan error, 1)
	go func() { served <- v.Serve(l) }()
	t.Cleanup(func() {
		v.Close()
		if err := <-served; !errors.Is(err, nbd.ErrServerClosed) {
			t.Errorf("Serve: %v", err)
		}
		if err := v.svc.Close(); err != nil && !errors.Is(err, storage.ErrClosed) { // the test may have closed it
			t.Errorf("service: %v", err)
		}
	})
	return v
}

// uri is where a tool finds the export.
func (v *server) uri(export string) string {
	if v.network == "tcp" {
		return "nbd://" + v.address + "/" + export
	}
	return "nbd+unix:///" + export + "?socket=" + v.address
}

// raw makes a raw image.
func raw(t testing.TB, name string, content []byte) func(dir string) {
	return func(dir string) {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// tools runs commands in the directory.
func tools(t testing.TB, commands ...string) func(dir string) {
	return func(dir string) {
		t.Helper()
		for _, command := range commands {
			run(t, dir, strings.Fields(command)...)
		}
	}
}

// packages are the Debian packages of the tools.
var packages = map[string]string{
	"qemu-img": "qemu-utils", "qemu-io": "qemu-utils", "qemu-nbd": "qemu-utils", "nbdinfo": "libnbd-bin", "nbdcopy": "libnbd-bin",
}

// try runs a tool, and returns what it printed.
func try(t testing.TB, dir string, args ...string) (string, error) {
	t.Helper()
	if _, err := exec.LookPath(args[0]); err != nil {
		t.Fatalf("%v: apt-get install %s", err, packages[args[0]])
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = dir
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), errors.Join(err, errors.New(stderr.String()))
	}
	return stdout.String(), nil
}

func run(t testing.TB, dir string, args ...string) string {
	t.Helper()
	out, err := try(t, dir, args...)
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// random is n bytes of which none is zero.
func random(n int) []byte {
	r := rand.New(rand.NewPCG(1, uint64(n)))
	p := make([]byte, 0, n+8)
	for len(p) < n {
		p = binary.LittleEndian.AppendUint64(p, r.Uint64()|0x0101010101010101)
	}
	return p[:n:n]
}

// eventually fails unless ok becomes true within a few seconds.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
	}
}
