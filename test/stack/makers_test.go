package stack_test

import (
	"encoding/binary"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/file"
	"github.com/extentd/extentd/storage/filter"
	"github.com/extentd/extentd/storage/filter/blocksize"
	"github.com/extentd/extentd/storage/filter/cache"
	"github.com/extentd/extentd/storage/filter/cow"
	"github.com/extentd/extentd/storage/filter/delay"
	"github.com/extentd/extentd/storage/filter/fault"
	"github.com/extentd/extentd/storage/filter/log"
	"github.com/extentd/extentd/storage/filter/offset"
	"github.com/extentd/extentd/storage/filter/policy"
	"github.com/extentd/extentd/storage/filter/rate"
	"github.com/extentd/extentd/storage/filter/readahead"
	"github.com/extentd/extentd/storage/filter/readonly"
	"github.com/extentd/extentd/storage/filter/retry"
	"github.com/extentd/extentd/storage/filter/stats"
	"github.com/extentd/extentd/storage/filter/swab"
	"github.com/extentd/extentd/storage/mem"
	"github.com/extentd/extentd/storage/storagetest"
)

// A base makes a protocol node with the content, ready to be written to.
type base struct {
	kind string
	make func(t *testing.T, content []byte) storage.File
}

func bases() []base {
	small := func(minimum int64) storage.Limits {
		return storage.Limits{Minimum: minimum, Preferred: max(512, minimum), MaxData: 4 * max(512, minimum)}
	}
	memory := func(limits storage.Limits) func(*testing.T, []byte) storage.File {
		return func(_ *testing.T, content []byte) storage.File {
			f := storagetest.NewMemFileWith(storagetest.MemOptions{Limits: limits, Litter: 0xdb})
			f.Put(content, 0)
			return f
		}
	}
	return []base{
		{"1", memory(storage.Limits{})},
		{"small-1", memory(small(1))},
		{"512", memory(storage.Limits{Minimum: 512})},
		{"small-512", memory(small(512))},
		{"4096", memory(small(4096))},
		{"mem", func(t *testing.T, content []byte) storage.File {
			f, err := mem.New(mem.Options{Size: int64(len(content))})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteAt(t.Context(), content, 0); err != nil {
				t.Fatal(err)
			}
			return f
		}},
		{"file", func(t *testing.T, content []byte) storage.File { return openFile(t, content, false) }},
		{"direct", func(t *testing.T, content []byte) storage.File { return openFile(t, content, true) }},
	}
}

func openFile(t *testing.T, content []byte, direct bool) storage.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := file.Open(t.Context(), path, file.Options{Direct: direct})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// A maker puts a filter over a node, and says to the model what that changes.
type maker struct {
	kind string
	make func(t *testing.T, random *rand.Rand, next *storage.Node, m *model) (storage.File, error)
}

func makers() []maker {
	return []maker{
		{"blocksize", func(_ *testing.T, _ *rand.Rand, next *storage.Node, _ *model) (storage.File, error) {
			return blocksize.New(next, blocksize.Options{})
		}},
		{"policy", makePolicy},
		{"offset", makeOffset},
		{"swab", makeSwab},
		{"readonly", func(_ *testing.T, _ *rand.Rand, next *storage.Node, m *model) (storage.File, error) {
			m.readOnly = true
			return readonly.New(next, readonly.Options{})
		}},
		{"cow", func(t *testing.T, _ *rand.Rand, next *storage.Node, m *model) (storage.File, error) {
			m.readOnly, m.fixed = false, false
			return cow.New(t.Context(), next, cow.Options{File: scratch(t)})
		}},
		{"cache", func(t *testing.T, random *rand.Rand, next *storage.Node, _ *model) (storage.File, error) {
			const block = 4096
			return cache.New(t.Context(), next, cache.Options{File: scratch(t), BlockSize: block, Size: block * (1 + random.Int64N(20))})
		}},
		{"readahead", func(_ *testing.T, random *rand.Rand, next *storage.Node, _ *model) (storage.File, error) {
			return readahead.New(next, readahead.Options{Size: 64 << 10 << random.IntN(5)})
		}},
		{"retry", func(_ *testing.T, _ *rand.Rand, next *storage.Node, m *model) (storage.File, error) {
			m.flaky = false
			return retry.New(next, retry.Options{Retries: 100, Delay: time.Microsecond, MaxDelay: time.Microsecond})
		}},
		{"rate", func(_ *testing.T, _ *rand.Rand, next *storage.Node, _ *model) (storage.File, error) {
			return rate.New(next, rate.Options{Read: 1 << 32, Write: 1 << 32})
		}},
		{"delay", func(_ *testing.T, _ *rand.Rand, next *storage.Node, _ *model) (storage.File, error) {
			return delay.New(next, delay.Options{Read: time.Microsecond, Write: time.Microsecond})
		}},
		{"error", func(_ *testing.T, random *rand.Rand, next *storage.Node, m *model) (storage.File, error) {
			m.flaky = true
			return fault.New(next, fault.Options{
				Operations: []filter.Op{filter.Read, filter.Extents, filter.Write, filter.Zero, filter.Trim, filter.Truncate},
				Rate:       0.05, Err: syscall.EIO, Seed: random.Uint64(),
			})
		}},
		{"log", func(t *testing.T, _ *rand.Rand, next *storage.Node, _ *model) (storage.File, error) {
			return log.New(next, log.Options{Logger: slog.New(slog.DiscardHandler)})
		}},
		{"stats", func(_ *testing.T, _ *rand.Rand, next *storage.Node, _ *model) (storage.File, error) {
			return stats.New(next, stats.Options{})
		}},
	}
}

func scratch(t *testing.T) *storage.Node {
	t.Helper()
	return storage.NewNode("scratch", storagetest.NewMemFileWith(storagetest.MemOptions{Size: 4096}), storage.NodeOptions{Check: true})
}

// makePolicy tightens what it may, or tells what it likes.
func makePolicy(t *testing.T, random *rand.Rand, next *storage.Node, _ *model) (storage.File, error) {
	t.Helper()
	l, err := next.Limits(t.Context())
	if err != nil {
		return nil, err
	}
	if random.IntN(3) == 0 {
		return policy.New(t.Context(), next, policy.Options{Mode: policy.Allow, Limits: storage.Limits{Minimum: 4096}})
	}
	minimum := min(l.Minimum<<random.IntN(3), 4096)
	return policy.New(t.Context(), next, policy.Options{Limits: storage.Limits{Minimum: min(max(minimum, l.Minimum), l.MaxData)}})
}

// makeOffset takes a window, to the end or before it.
func makeOffset(t *testing.T, random *rand.Rand, next *storage.Node, m *model) (storage.File, error) {
	t.Helper()
	minimum, err := next.Limit(t.Context(), storage.Minimum)
	if err != nil {
		return nil, err
	}
	unit := max(minimum, 8)
	opt := offset.Options{Offset: random.Int64N(m.size()/4) / unit * unit}
	length := m.size() - opt.Offset
	if random.IntN(2) == 0 {
		if opt.Length = random.Int64N(length-length/4) + length/4; opt.Length >= unit {
			opt.Length -= opt.Length % unit
			length = opt.Length
			m.fixed = true
		} else {
			opt.Length = 0
		}
	}
	m.window(opt.Offset, length)
	return offset.New(t.Context(), next, opt)
}

func makeSwab(t *testing.T, random *rand.Rand, next *storage.Node, m *model) (storage.File, error) {
	t.Helper()
	bits := []int{16, 32, 64}[random.IntN(3)]
	m.swab(bits / 8)
	return swab.New(next, swab.Options{Bits: bits})
}

// content is random, with zeros in it.
func content(random *rand.Rand, size int64) []byte {
	p := make([]byte, (size+7)/8*8)
	for at := int64(0); at < size; {
		n := min(8*(1+random.Int64N(4<<10)), size-at)
		if random.IntN(3) > 0 {
			for i := at; i < at+n; i += 8 {
				binary.LittleEndian.PutUint64(p[i:], random.Uint64())
			}
		}
		at += n
	}
	return p[:size]
}
