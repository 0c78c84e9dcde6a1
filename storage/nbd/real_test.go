package nbd_test

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/nbd"
	"github.com/extentd/extentd/storage/storagetest"
	"github.com/extentd/extentd/test/certs"
)

// A server that fails now and then fails what it fails, and nothing else.
func TestErrorFilter(t *testing.T) {
	for _, sr := range []string{"-v", "--no-sr"} {
		content := random(t, 1<<20)
		f := openFile(t, options(nbdkit(t, sr, "--filter=error", "file", file(t, content),
			"error-pread-rate=50%", "error-pread=EIO", "error-pwrite-rate=50%", "error-pwrite=ENOSPC", "error-extents-rate=50%")))
		var failed, done atomic.Int64
		count := func(err, want error) {
			if err == nil {
				done.Add(1)
			} else if failed.Add(1); !errors.Is(err, want) {
				t.Errorf("%v, want %v", err, want)
			}
		}
		var wg sync.WaitGroup
		for k := range int64(16) {
			wg.Go(func() {
				p := make([]byte, 4096)
				for i := range int64(50) {
					off := k*50000 + i*100
					_, err := f.ReadAt(t.Context(), p, off)
					if count(err, syscall.EIO); err == nil && !bytes.Equal(p, content[off:off+4096]) {
						t.Errorf("wrong bytes at %d", off)
					}
					var l storage.ExtentList
					count(f.Extents(t.Context(), off, 4096, &l), syscall.EIO)
					_, err = f.WriteAt(t.Context(), content[off:off+100], off)
					count(err, storage.ErrNoSpace)
				}
			})
		}
		wg.Wait()
		if failed.Load() < 100 || done.Load() < 100 {
			t.Errorf("%d failed, %d did not", failed.Load(), done.Load())
		}
	}
}

// A server that is killed and started anew: reads notice nothing, writes that were
// under way say so, and so does the next flush. What was written without an error
// and flushed is there.
func TestKilled(t *testing.T) {
	name := file(t, make([]byte, 16<<20))
	socket := filepath.Join(directory(t), "s")
	args := []string{"-f", "--unix", socket, "--filter=delay", "file", name, "wdelay=2ms"}
	server := start(t, socket, "nbdkit", args...)
	f := openFile(t, options(unixURI(socket, "")))
	const workers = 8
	var wg sync.WaitGroup
	var lost atomic.Int64
	for k := range int64(workers) {
		wg.Go(func() {
			p, got := make([]byte, 4096), make([]byte, 4096)
			for i := range int64(200) {
				off := (k*200 + i) * 8192 % (16 << 20)
				copy(p, fmt.Sprintf("%d of %d", i, k))
				if _, err := f.WriteAt(t.Context(), p, off); err != nil {
					if lost.Add(1); !errors.Is(err, nbd.ErrLost) {
						t.Error("write", err)
					}
					continue
				}
				if _, err := f.ReadAt(t.Context(), got, off); err != nil || !bytes.Equal(got, p) {
					t.Errorf("%q at %d, %v", got[:10], off, err)
				}
			}
		})
	}
	time.Sleep(200 * time.Millisecond)
	_ = server.Process.Kill()
	time.Sleep(50 * time.Millisecond)
	_ = os.Remove(socket)
	start(t, socket, "nbdkit", args...)
	wg.Wait()
	if n := lost.Load(); n == 0 || n > 4*workers { // not every connection is noticed at once
		t.Errorf("%d writes were lost", n)
	}
	is(t, "flush", f.Flush(t.Context()), nbd.ErrLost)
	is(t, "flush", f.Flush(t.Context()), nil)
}

func TestTLS(t *testing.T) {
	a := certs.In(t, directory(t))
	a.Server("store.example")
	dir, pool := a.Dir, a.Pool()
	secure := func(plain, hostname string) nbd.Options {
		opt := options("nbds" + plain[len("nbd"):] + "&tls-hostname=" + url.QueryEscape(hostname))
		opt.TLS = &tls.Config{RootCAs: pool}
		return opt
	}
	kit := func(t *testing.T, args ...string) string {
		return nbdkit(t, append([]string{"--tls=require", "--tls-certificates=" + dir}, args...)...)
	}
	t.Run("reads", func(t *testing.T) {
		storagetest.TestFile(t, 1, func(t *testing.T, content []byte, holes ...storagetest.Range) storage.File {
			return openFile(t, secure(kit(t, "file", file(t, content, holes...)), "store.example"))
		})
	})
	t.Run("writes", func(t *testing.T) {
		storagetest.TestFixedWriter(t, 1, func(t *testing.T, size int64) storage.File {
			return openFile(t, secure(kit(t, "memory", fmt.Sprint(size)), "store.example"))
		})
	})
	uri := kit(t, "memory", "1M")
	for name, c := range map[string]struct {
		opt  nbd.Options
		want error
	}{
		"another name":       {secure(uri, "other.example"), storage.ErrRefused},
		"unknown authority":  {func() nbd.Options { o := secure(uri, "store.example"); o.TLS = nil; return o }(), storage.ErrRefused},
		"the server wants":   {options(uri), storage.ErrRefused},
		"the server has not": {secure(nbdkit(t, "memory", "1M"), "store.example"), storage.ErrRefused},
	} {
		_, err := nbd.Open(t.Context(), c.opt)
		is(t, name, err, c.want)
	}
	opt := secure(uri, "store.example") // it is silent in between
	opt.Timeout = 30 * time.Millisecond
	f := openFile(t, opt)
	for range 3 {
		p := random(t, 300<<10)
		if _, err := f.WriteAt(t.Context(), p, 7); err != nil {
			t.Error(err)
		}
		got := make([]byte, len(p))
		if _, err := f.ReadAt(t.Context(), got, 7); err != nil || !bytes.Equal(got, p) {
			t.Error(err)
		}
		time.Sleep(70 * time.Millisecond)
	}
	is(t, "flush", f.Flush(t.Context()), nil)
}
