package codec_test

import (
	"bytes"
	stdflate "compress/flate"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"

	"github.com/klauspost/compress/zstd"
	"go.uber.org/goleak"

	"github.com/extentd/extentd/storage/codec"
)

const cluster = 64 << 10

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// block is n bytes that compress to about half.
func block(seed uint64, n int) []byte {
	rng := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, n)
	for i := 0; i < n; {
		run := min(1+rng.IntN(64), n-i)
		if rng.IntN(2) == 0 && i > run {
			copy(b[i:], b[rng.IntN(i-run+1):][:run])
		} else {
			for j := range run {
				b[i+j] = byte(rng.Uint32())
			}
		}
		i += run
	}
	return b
}

func deflated(t testing.TB, p []byte, level int) []byte {
	t.Helper()
	var buf bytes.Buffer
	w, err := stdflate.NewWriter(&buf, level)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(p); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func zstandard(t testing.TB, p []byte, opts ...zstd.EOption) []byte {
	t.Helper()
	e, err := zstd.NewWriter(nil, append(opts, zstd.WithEncoderConcurrency(1))...)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	return e.EncodeAll(p, nil)
}

// streamed has no content size in its frame header.
func streamed(t testing.TB, p []byte, opts ...zstd.EOption) []byte {
	t.Helper()
	var buf bytes.Buffer
	e, err := zstd.NewWriter(&buf, append(opts, zstd.WithEncoderConcurrency(1))...)
	if err != nil {
		t.Fatal(err)
	}
	for len(p) > 0 { // a writer that is given all at once knows the size
		n := min(len(p), 1000)
		if _, err := e.Write(p[:n]); err != nil {
			t.Fatal(err)
		}
		p = p[n:]
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func concat(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

func flipped(p []byte, i int) []byte {
	p = bytes.Clone(p)
	p[i] ^= 1
	return p
}

func skippable(n byte) []byte {
	return append([]byte{0x5a, 0x2a, 0x4d, 0x18, n, 0, 0, 0}, make([]byte, n)...)
}

func TestUnpack(t *testing.T) {
	data := block(1, cluster)
	junk := block(2, 700)
	d := func(p []byte) []byte { return deflated(t, p, 9) }
	z := func(p []byte) []byte { return zstandard(t, p) }
	fastest := zstd.WithEncoderLevel(zstd.SpeedFastest)
	for _, tt := range []struct {
		name  string
		codec codec.Codec
		src   []byte
		ok    bool
	}{
		{"deflate", codec.Deflate(), d(data), true},
		{"deflate/stored", codec.Deflate(), deflated(t, data, 0), true},
		{"deflate/huffman only", codec.Deflate(), deflated(t, data, -2), true},
		{"deflate/sector padding", codec.Deflate(), concat(d(data), make([]byte, 511)), true},
		{"deflate/trailing garbage", codec.Deflate(), concat(d(data), junk), true},
		{"deflate/longer than the block", codec.Deflate(), d(concat(data, junk)), true},
		{"deflate/shorter than the block", codec.Deflate(), d(data[1:]), false},
		{"deflate/cut", codec.Deflate(), d(data)[:20000], false},
		{"deflate/empty", codec.Deflate(), nil, false},
		{"deflate/zeros", codec.Deflate(), make([]byte, 512), false},
		{"deflate/zlib header", codec.Deflate(), concat([]byte{0x78, 0xda}, d(data)), false},

		{"zstd", codec.Zstd(), z(data), true},
		{"zstd/fastest", codec.Zstd(), zstandard(t, data, fastest), true},
		{"zstd/no checksum", codec.Zstd(), zstandard(t, data, zstd.WithEncoderCRC(false)), true},
		{"zstd/no content size", codec.Zstd(), streamed(t, data), true},
		{"zstd/runs", codec.Zstd(), nil, true}, // filled in below
		{"zstd/sector padding", codec.Zstd(), concat(z(data), make([]byte, 511)), true},
		{"zstd/trailing garbage", codec.Zstd(), concat(z(data), junk), true},
		{"zstd/trailing frame", codec.Zstd(), concat(z(data), z(data)), true},
		{"zstd/two frames", codec.Zstd(), concat(z(data[:30000]), z(data[30000:]), junk), true},
		{"zstd/skippable frames", codec.Zstd(), concat(skippable(9), z(data[:30000]), skippable(0), z(data[30000:])), true},
		{"zstd/empty frame", codec.Zstd(), concat(z(nil), z(data)), true},
		{"zstd/longer than the block", codec.Zstd(), z(concat(data, junk)), false},
		{"zstd/longer, no content size", codec.Zstd(), streamed(t, concat(data, junk)), false},
		{"zstd/second frame longer", codec.Zstd(), concat(z(data[:30000]), z(concat(data[30000:], junk))), false},
		{"zstd/shorter than the block", codec.Zstd(), z(data[1:]), false},
		{"zstd/cut", codec.Zstd(), z(data)[:20000], false},
		{"zstd/cut checksum", codec.Zstd(), z(data)[:len(z(data))-1], false},
		{"zstd/wrong checksum", codec.Zstd(), flipped(z(data), len(z(data))-1), false},
		{"zstd/cut skippable frame", codec.Zstd(), skippable(200)[:100], false},
		{"zstd/empty", codec.Zstd(), nil, false},
		{"zstd/zeros", codec.Zstd(), make([]byte, 512), false},
		{"zstd/window 256 MiB", codec.Zstd(), []byte{0x28, 0xb5, 0x2f, 0xfd, 0, 18 << 3, 3, 0, 0}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			want := data
			if tt.name == "zstd/runs" {
				want = make([]byte, cluster)
				tt.src = z(want)
			}
			dst := make([]byte, cluster, cluster+8)
			guard := dst[cluster : cluster+8]
			for range 3 { // a pooled decoder must not remember a failure
				err := tt.codec.Unpack(dst, tt.src)
				if !tt.ok {
					if !errors.Is(err, codec.ErrCorrupt) {
						t.Fatalf("error %v, want one that wraps ErrCorrupt", err)
					}
					continue
				}
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(dst, want) {
					t.Fatal("unpacked something else")
				}
				clear(dst)
			}
			if !bytes.Equal(guard, make([]byte, 8)) {
				t.Error("wrote past the block")
			}
		})
	}
}

// TestSizes unpacks every cluster size that qcow2 has.
func TestSizes(t *testing.T) {
	for bits := 9; bits <= 21; bits++ {
		want := block(uint64(bits), 1<<bits)
		got := make([]byte, len(want))
		for _, tt := range []struct {
			name string
			codec.Codec
			src []byte
		}{
			{"deflate", codec.Deflate(), deflated(t, want, 6)},
			{"zstd", codec.Zstd(), zstandard(t, want)},
		} {
			t.Run(fmt.Sprint(tt.name, "/", len(want)), func(t *testing.T) {
				if err := tt.Unpack(got, tt.src); err != nil || !bytes.Equal(got, want) {
					t.Fatalf("error %v, equal %v", err, bytes.Equal(got, want))
				}
			})
		}
	}
}

func TestConcurrent(t *testing.T) {
	for _, tt := range []struct {
		name string
		codec.Codec
		pack func(testing.TB, []byte) []byte
	}{
		{"deflate", codec.Deflate(), func(t testing.TB, p []byte) []byte { return deflated(t, p, 1) }},
		{"zstd", codec.Zstd(), func(t testing.TB, p []byte) []byte { return zstandard(t, p) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var wg sync.WaitGroup
			for seed := range uint64(8) {
				want := block(seed, cluster)
				src := tt.pack(t, want)
				wg.Go(func() {
					got := make([]byte, cluster)
					for range 20 {
						if err := tt.Unpack(got, src); err != nil || !bytes.Equal(got, want) {
							t.Errorf("block %d: error %v", seed, err)
						}
					}
				})
			}
			wg.Wait()
		})
	}
}

// TestBombs unpacks little input that claims to be, or is, far more than the
// block, and measures what that allocates.
func TestBombs(t *testing.T) {
	zeros := make([]byte, 64<<20)
	window := []byte{0x28, 0xb5, 0x2f, 0xfd, 0, 17 << 3} // a frame header: 128 MiB, size unknown
	rle := []byte{0x02 | 0xff&^7, 0xff, 0x0f, 0}         // a block of 128 KiB - 1 times the byte 0
	for _, tt := range []struct {
		name string
		codec.Codec
		src []byte
	}{
		{"deflate", codec.Deflate(), deflated(t, zeros, 9)},
		{"zstd", codec.Zstd(), zstandard(t, zeros)},
		{"zstd no size", codec.Zstd(), streamed(t, zeros)},
		{"zstd wide window", codec.Zstd(), concat(window, bytes.Repeat(rle, 1000), []byte{1, 0, 0})},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dst := make([]byte, cluster)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			err := tt.Unpack(dst, tt.src)
			runtime.ReadMemStats(&after)
			if tt.name != "deflate" && !errors.Is(err, codec.ErrCorrupt) {
				t.Errorf("error %v, want one that wraps ErrCorrupt", err)
			}
			if n := after.TotalAlloc - before.TotalAlloc; n > 2<<20 {
				t.Errorf("allocated %d bytes", n)
			}
		})
	}
}

func TestNoAllocation(t *testing.T) {
	data := block(3, cluster)
	dst := make([]byte, cluster)
	for _, tt := range []struct {
		name string
		codec.Codec
		src []byte
	}{
		{"deflate", codec.Deflate(), deflated(t, data, 6)},
		{"zstd", codec.Zstd(), zstandard(t, data)},
		{"zstd no size", codec.Zstd(), streamed(t, data)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if raceEnabled {
				return // the race detector makes pools forget
			}
			n := testing.AllocsPerRun(50, func() {
				if err := tt.Unpack(dst, tt.src); err != nil {
					t.Fatal(err)
				}
			})
			if n >= 1 {
				t.Errorf("%v allocations a block", n)
			}
		})
	}
}

// FuzzDeflate compares with the standard library's inflater.
func FuzzDeflate(f *testing.F) {
	data := block(4, 4096)
	for _, level := range []int{-2, 0, 1, 9} {
		packed := deflated(f, data, level)
		f.Add(packed)
		f.Add(concat(packed, data))
		f.Add(packed[:len(packed)/2])
	}
	f.Add(make([]byte, 512))
	c := codec.Deflate()
	f.Fuzz(func(t *testing.T, src []byte) {
		got, want := make([]byte, 4096), make([]byte, 4096)
		r := stdflate.NewReader(bytes.NewReader(src))
		_, wantErr := io.ReadFull(r, want)
		if wantErr == nil {
			_, wantErr = r.Read(make([]byte, 1))
			var bad stdflate.CorruptInputError
			if !errors.As(wantErr, &bad) {
				wantErr = nil
			}
		}
		err := c.Unpack(got, src)
		if (err == nil) != (wantErr == nil) {
			t.Fatalf("error %v, the standard library says %v", err, wantErr)
		}
		if err != nil && !errors.Is(err, codec.ErrCorrupt) {
			t.Errorf("error %v does not wrap ErrCorrupt", err)
		}
		if err == nil && !bytes.Equal(got, want) {
			t.Error("unpacked something else than the standard library")
		}
	})
}

// FuzzZstd packs what it is given and unpacks it again, and unpacks it as it
// is, which must not depend on what follows.
func FuzzZstd(f *testing.F) {
	data := block(5, 4096)
	f.Add(data)
	f.Add(zstandard(f, data))
	f.Add(concat(zstandard(f, data[:1000]), skippable(7), streamed(f, data[1000:])))
	f.Add(zstandard(f, make([]byte, 4096)))
	f.Add(make([]byte, 512))
	e, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		f.Fatal(err)
	}
	c := codec.Zstd()
	f.Fuzz(func(t *testing.T, src []byte) {
		back := make([]byte, len(src))
		if err := c.Unpack(back, e.EncodeAll(src, nil)); err != nil || !bytes.Equal(back, src) {
			t.Fatalf("round trip: error %v", err)
		}
		one, two := make([]byte, 4096), make([]byte, 4096)
		err := c.Unpack(one, src)
		if err != nil && !errors.Is(err, codec.ErrCorrupt) {
			t.Errorf("error %v does not wrap ErrCorrupt", err)
		}
		if err != nil {
			return
		}
		if err := c.Unpack(two, slices.Concat(src, []byte("garbage"))); err != nil || !bytes.Equal(one, two) {
			t.Errorf("with trailing garbage: error %v", err)
		}
	})
}

func BenchmarkUnpack(b *testing.B) {
	data := block(6, cluster)
	dst := make([]byte, cluster)
	for _, bb := range []struct {
		name string
		codec.Codec
		src []byte
	}{
		{"deflate", codec.Deflate(), deflated(b, data, 6)},
		{"zstd", codec.Zstd(), zstandard(b, data)},
	} {
		b.Run(bb.name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(cluster)
			for b.Loop() {
				if err := bb.Unpack(dst, bb.src); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
