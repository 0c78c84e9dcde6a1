package file_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/file"
	"github.com/extentd/extentd/storage/raw"
	"github.com/extentd/extentd/storage/storagetest"
)

const (
	data  = storage.Alloc | storage.OffsetValid
	hole  = storage.Zero | storage.OffsetValid
	block = 64 << 10 // a multiple of every file system's block
)

func extent(off, end int64, status storage.Status) storage.Mapping {
	return storage.Mapping{Offset: off, Length: end - off, NodeOffset: off, Status: status}
}

func extents(t *testing.T, f *file.File, off, n int64) []storage.Mapping {
	t.Helper()
	var l storage.ExtentList
	must(t, f.Extents(t.Context(), off, n, &l))
	return mappings(&l)
}

func mappings(l *storage.ExtentList) []storage.Mapping {
	var all []storage.Mapping
	for i := range l.Len() {
		all = append(all, *l.At(i))
	}
	return all
}

// blockSize is the granularity of holes in a directory.
func blockSize(t testing.TB, dir string) int64 {
	t.Helper()
	var st unix.Statfs_t
	must(t, unix.Statfs(dir, &st))
	return st.Bsize
}

// TestExtentBoundaries: exact at blocks, block by block inside them, cut at the
// end of the file, and whole where they reach past the range.
func TestExtentBoundaries(t *testing.T) {
	const size = 6*block + 777
	for name, dir := range dirs(t) {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(dir, "boundaries")
			bs := blockSize(t, dir)
			content := bytes.Repeat([]byte{1}, size)
			write(t, path, content,
				storagetest.Range{Offset: block, Length: block},
				storagetest.Range{Offset: 3*block + 10, Length: block}, // begins and ends inside a block
				storagetest.Range{Offset: 5 * block, Length: block + 777})
			f := open(t, path)
			whole := []storage.Mapping{
				extent(0, block, data),
				extent(block, 2*block, hole),
				extent(2*block, 3*block+bs, data),
				extent(3*block+bs, 4*block, hole),
				extent(4*block, 5*block, data),
				extent(5*block, size, hole),
			}
			for _, c := range []struct {
				name   string
				off, n int64
				want   []storage.Mapping
			}{
				{"all", 0, size, whole},
				{"first byte", 0, 1, whole[:1]},
				{"in data", 100, 1, []storage.Mapping{extent(100, block, data)}},
				{"last byte of data", block - 1, 1, []storage.Mapping{extent(block-1, block, data)}},
				{"over an edge", block - 1, 2, []storage.Mapping{extent(block-1, block, data), whole[1]}},
				{"first byte of a hole", block, 1, whole[1:2]},
				{"in a hole", block + 5, 1, []storage.Mapping{extent(block+5, 2*block, hole)}},
				{"last byte of a hole", 2*block - 1, 1, []storage.Mapping{extent(2*block-1, 2*block, hole)}},
				{"three", 2*block - 1, 2*block + 2, []storage.Mapping{extent(2*block-1, 2*block, hole), whole[2], whole[3], whole[4]}},
				{"hole at the end", 5 * block, 1, whole[5:]},
				{"last byte", size - 1, 1, []storage.Mapping{extent(size-1, size, hole)}},
			} {
				t.Run(c.name, func(t *testing.T) {
					if diff := cmp.Diff(c.want, extents(t, f, c.off, c.n)); diff != "" {
						t.Error(diff)
					}
				})
			}
		})
	}
}

// TestExtentsAgreeWithQEMU compares with qemu-img map at every boundary.
func TestExtentsAgreeWithQEMU(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for name, dir := range dirs(t) {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(dir, "random")
			f, err := os.Create(path)
			must(t, err)
			defer f.Close()
			const size = 8 << 20
			must(t, f.Truncate(size))
			for range 200 {
				_, err := f.WriteAt([]byte{1}, random.Int64N(size))
				must(t, err)
			}
			want := qemuMap(t, path)
			got := extents(t, open(t, path), 0, size)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// qemuMap is what qemu-img map says, in its human format with unmapped parts
// left out filled in.
func qemuMap(t *testing.T, path string) []storage.Mapping {
	t.Helper()
	out := qemu(t, "qemu-img", "map", "-f", "raw", path)
	st, err := os.Stat(path)
	must(t, err)
	var l storage.ExtentList
	add := func(end int64, status storage.Status) {
		must(t, l.Add(extent(l.End(), end, status)))
	}
	for _, line := range strings.Split(strings.TrimSpace(out), "\n")[1:] {
		fields := strings.Fields(line)
		off, err := strconv.ParseInt(fields[0], 0, 64)
		must(t, err)
		n, err := strconv.ParseInt(fields[1], 0, 64)
		must(t, err)
		add(off, hole)
		add(off+n, data)
	}
	add(st.Size(), hole)
	return mappings(&l)
}

func qemu(t *testing.T, name string, arg ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), find(t, name), arg...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(arg, " "), err, out)
	}
	return string(out)
}

func find(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%v: apt-get install qemu-utils", err)
	}
	return path
}

// TestExtentsFollowTheSize: a file that has changed its length is asked anew.
func TestExtentsFollowTheSize(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	write(t, path, bytes.Repeat([]byte{1}, 2*block))
	f := open(t, path)
	must(t, os.Truncate(path, 4*block))
	want := []storage.Mapping{extent(0, 2*block, data), extent(2*block, 4*block, hole)}
	if diff := cmp.Diff(want, extents(t, f, 0, 4*block)); diff != "" {
		t.Error(diff)
	}
	must(t, os.Truncate(path, block+1))
	if diff := cmp.Diff([]storage.Mapping{extent(0, block+1, data)}, extents(t, f, 0, block+1)); diff != "" {
		t.Error(diff)
	}
	var l storage.ExtentList
	if err := f.Extents(t.Context(), 0, 2*block, &l); !errors.Is(err, storage.ErrOutOfRange) {
		t.Errorf("Extents of what was cut off = %v, want %v", err, storage.ErrOutOfRange)
	}
}

// TestExtentsWhileTheFileChanges: whatever happens meanwhile, an answer is
// adjacent, begins where it should, or is an error; and the part that nobody
// changes is told as it is.
func TestExtentsWhileTheFileChanges(t *testing.T) {
	for name, dir := range dirs(t) {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(dir, "changing")
			write(t, path, bytes.Repeat([]byte{1}, block))
			f := open(t, path)
			w, err := os.OpenFile(path, os.O_WRONLY, 0)
			must(t, err)
			defer w.Close()
			var wg sync.WaitGroup
			stop := make(chan struct{})
			defer wg.Wait()
			defer close(stop)
			wg.Go(func() {
				page := bytes.Repeat([]byte{1}, 4096)
				for i := int64(0); ; i++ {
					select {
					case <-stop:
						return
					default:
					}
					off := block + rand.Int64N(16)*8192
					switch i % 3 {
					case 0, 1:
						_, err = w.WriteAt(page, off)
					case 2:
						err = w.Truncate(off)
					}
					if err != nil {
						t.Error(err)
						return
					}
				}
			})
			complete := 0
			for begin := time.Now(); time.Since(begin) < 300*time.Millisecond || complete < 20; {
				var l storage.ExtentList
				err := f.Extents(t.Context(), 0, block+rand.Int64N(16*8192), &l)
				switch {
				case errors.Is(err, storage.ErrOutOfRange):
				case err != nil:
					t.Fatal(err)
				case l.Start() != 0 || l.At(0).Status != data || l.At(0).Length < block:
					t.Fatalf("the unchanging part is %+v", *l.At(0))
				default:
					complete++
				}
				if time.Since(begin) > 30*time.Second {
					t.Fatalf("only %d answers", complete)
				}
			}
		})
	}
}

// TestExtentsStopEarly: an answer takes bounded memory, and the rest can be had.
func TestExtentsStopEarly(t *testing.T) {
	path := scattered(t, tmpfs(t), 5000)
	f := open(t, path)
	size, err := f.Size(t.Context())
	must(t, err)
	l := new(storage.ExtentList)
	must(t, f.Extents(t.Context(), 0, size, l))
	if l.Len() < 100 || l.Len() > 4000 || l.End() == size {
		t.Errorf("one answer has %d extents", l.Len())
	}
	for l.End() < size {
		must(t, f.Extents(t.Context(), l.End(), size-l.End(), l))
	}
	if l.Len() != 2*5000-1 {
		t.Errorf("%d extents, want %d", l.Len(), 2*5000-1)
	}
}

// scattered makes a file of n data extents, each a block, with holes between.
func scattered(t testing.TB, dir string, n int) string {
	t.Helper()
	path := filepath.Join(dir, "scattered-"+strconv.Itoa(n))
	f, err := os.Create(path)
	must(t, err)
	defer f.Close()
	bs := blockSize(t, dir)
	for i := range int64(n) {
		_, err := f.WriteAt([]byte{1}, 2*i*bs)
		must(t, err)
	}
	must(t, f.Truncate((2*int64(n)-1)*bs))
	return path
}

// TestManyExtents walks 200,000 data extents on tmpfs in windows of 1 MiB, and
// compares with the time that a quarter takes.
func TestManyExtents(t *testing.T) {
	dir := tmpfs(t)
	quarter := fetchTime(t, scattered(t, dir, 50_000), 2*50_000-1)
	whole := fetchTime(t, scattered(t, dir, 200_000), 2*200_000-1)
	t.Logf("%v for 50,000 data extents, %v for 200,000", quarter, whole)
	if whole > 12*quarter { // 4 when linear, 16 when quadratic
		t.Errorf("time grows faster than the map: %v to %v", quarter, whole)
	}
}

// fetchTime is the best of three walks.
func fetchTime(t *testing.T, path string, want int) time.Duration {
	t.Helper()
	i, err := raw.New(t.Context(), storage.NewNode("file", open(t, path), storage.NodeOptions{}))
	must(t, err)
	best := time.Hour
	for range 3 {
		begin := time.Now()
		got := 0
		var l storage.ExtentList
		var last storage.Mapping
		for off := int64(0); off < i.Size(); off = l.End() {
			l.Reset()
			must(t, i.Fetch(t.Context(), off, min(1<<20, i.Size()-off), &l))
			for k := range l.Len() {
				m := l.At(k)
				if m.Status == last.Status || m.Offset != last.End() {
					t.Fatalf("after %+v comes %+v", last, *m)
				}
				last = *m
			}
			got += l.Len()
		}
		if got != want {
			t.Fatalf("%d extents, want %d", got, want)
		}
		best = min(best, time.Since(begin))
	}
	return best
}

func TestExtentsCancelledMidway(t *testing.T) {
	f := open(t, scattered(t, tmpfs(t), 2000))
	ctx := &countdown{Context: t.Context(), left: 50}
	var l storage.ExtentList
	if err := f.Extents(ctx, 0, 1<<20, &l); !errors.Is(err, context.Canceled) || l.Len() > 50 {
		t.Errorf("Extents = %v after %d extents", err, l.Len())
	}
}

// countdown is cancelled once it has been asked so many times.
type countdown struct {
	context.Context
	left int
}

func (c *countdown) Err() error {
	if c.left--; c.left < 0 {
		return context.Canceled
	}
	return nil
}

func BenchmarkExtents(b *testing.B) {
	dir, err := os.MkdirTemp("/dev/shm", "extentd-bench-")
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	const n = 20_000
	f, err := file.Open(context.Background(), scattered(b, dir, n), file.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	i, err := raw.New(context.Background(), storage.NewNode("file", f, storage.NodeOptions{}))
	if err != nil {
		b.Fatal(err)
	}
	var l storage.ExtentList
	b.ReportAllocs()
	for b.Loop() {
		for off := int64(0); off < i.Size(); off = l.End() {
			l.Reset()
			if err := i.Fetch(context.Background(), off, min(1<<20, i.Size()-off), &l); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/(2*n-1), "ns/extent")
}
