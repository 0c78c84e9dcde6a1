package nbd_test

import (
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/extentd/extentd/storage/nbd/wire"
)

// Reads and writes allocate nothing.
func TestAllocations(t *testing.T) {
	f := openFile(t, options(nbdkit(t, "memory", "1M")))
	p := make([]byte, 4096)
	for c, do := range map[wire.Command]func() error{
		wire.CmdRead:  func() error { _, err := f.ReadAt(t.Context(), p, 4096); return err },
		wire.CmdWrite: func() error { _, err := f.WriteAt(t.Context(), p, 4096); return err },
	} {
		n := testing.AllocsPerRun(200, func() {
			if err := do(); err != nil {
				t.Fatal(err)
			}
		})
		if n > 1 { // a pool forgets now and then
			t.Errorf("%v allocates %v times", c, n)
		}
	}
}

func BenchmarkReadAt(b *testing.B) {
	for _, size := range []int{4096, 256 << 10} {
		b.Run(strconv.Itoa(size), func(b *testing.B) {
			f := openFile(b, options(nbdkit(b, "memory", "64M")))
			var next atomic.Int64
			b.SetBytes(int64(size))
			b.SetParallelism(16)
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				p := make([]byte, size)
				for pb.Next() {
					off := next.Add(int64(size)) % (64 << 20)
					if _, err := f.ReadAt(b.Context(), p, off/int64(size)*int64(size)%(63<<20)); err != nil {
						b.Error(err)
					}
				}
			})
		})
	}
}
