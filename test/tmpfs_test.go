package test

import (
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestManyExtentsOnTmpfs: lseek for data and holes is slow on tmpfs, and a map
// must not ask it the same again and again. The map of 200,000 data extents is
// right, and costs four times that of 50,000.
func TestManyExtentsOnTmpfs(t *testing.T) {
	dir, err := os.MkdirTemp(tmpfs(t), "extentd-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	s := serve(t, dir)
	s.client.Timeout = 60 * time.Second
	var elapsed [2]time.Duration
	for i, data := range []int64{50_000, 200_000} {
		name := []string{"small.raw", "large.raw"}[i]
		makeComb(t, filepath.Join(dir, name), data)
		begin := time.Now()
		streamed := s.stream(t, name)
		elapsed[i] = time.Since(begin)
		checkComb(t, "NDJSON", streamed, data)
		begin = time.Now()
		paged := combPages(t, s, name, 10_000)
		t.Logf("%d extents: streamed in %v, in pages in %v", len(streamed), elapsed[i], time.Since(begin))
		checkComb(t, "pages", paged, data)
		if i == 0 {
			checkComb(t, "small pages", combPages(t, s, name, 997), data)
		}
	}
	if ratio := float64(elapsed[1]) / float64(elapsed[0]); ratio > 8 {
		t.Errorf("four times the extents took %.1f times as long: %v and %v", ratio, elapsed[0], elapsed[1])
	}
	s.expect(t, http.StatusPartialContent, "/v1/images/large.raw/data", "Range", "bytes=0-4095")
}

// tmpfs is a directory on one.
func tmpfs(t *testing.T) string {
	t.Helper()
	for _, dir := range []string{"/dev/shm", "/run", os.TempDir()} {
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err == nil && st.Type == unix.TMPFS_MAGIC && int64(st.Bavail)*st.Bsize > 900*mib {
			return dir
		}
	}
	t.Fatal("no tmpfs with 900 MiB free: mount -o remount,size=1G /dev/shm")
	return ""
}

// tooth is the length of each data extent and each hole of a comb: a page.
const tooth = 4096

// makeComb makes a sparse file of n data extents, each followed by a hole.
func makeComb(t *testing.T, path string, n int64) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for i := range n {
		if _, err := f.WriteAt([]byte{byte(i), 1}, i*2*tooth); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(n * 2 * tooth); err != nil {
		t.Fatal(err)
	}
}

func combPages(t *testing.T, s *server, name string, limit int) []extent {
	t.Helper()
	var all []extent
	for next := int64(0); ; {
		p := s.page(t, name, "limit", limit, "offset", next)
		all = append(all, p.Extents...)
		if p.Next == nil {
			return all
		}
		if *p.Next <= next {
			t.Fatalf("next is %d after %d", *p.Next, next)
		}
		next = *p.Next
	}
}

func checkComb(t *testing.T, what string, extents []extent, n int64) {
	t.Helper()
	if int64(len(extents)) != 2*n {
		t.Fatalf("%s: %d extents, want %d", what, len(extents), 2*n)
	}
	for i, e := range extents {
		want := span{Start: int64(i) * tooth, Length: tooth, Present: true, Zero: i%2 == 1, Offset: int64(i) * tooth}
		if e.span() != want || *e.Alloc == want.Zero {
			t.Fatalf("%s: extent %d is %v, want %+v", what, i, e, want)
		}
	}
}
