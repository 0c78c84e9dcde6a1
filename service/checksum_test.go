package service_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
	"lukechampine.com/blake3"

	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/block"
	rawformat "github.com/extentd/extentd/storage/raw"
	"github.com/extentd/extentd/storage/storagetest"
)

// hashes makes what a checksum's hash is, independently of the service.
func hashes(name string) hash.Hash {
	if name == "blake3" {
		return blake3.New(32, nil)
	}
	return sha256.New()
}

// slowly computes a checksum, and what is told on the way, block by block.
func slowly(name string, content []byte, size int64) (sum []byte, runs []service.BlockRun) {
	outer := hashes(name)
	if size == 0 {
		_, _ = outer.Write(content)
		return outer.Sum(nil), nil
	}
	for off := int64(0); off < int64(len(content)); off += size {
		part := content[off:min(off+size, int64(len(content)))]
		h := hashes(name)
		_, _ = h.Write(part)
		digest := h.Sum(nil)
		_, _ = outer.Write(digest)
		zero := bytes.Equal(part, make([]byte, len(part)))
		if n := len(runs); n > 0 && zero && runs[n-1].Zero && int64(len(part)) == size {
			runs[n-1].Length += size
			continue
		}
		runs = append(runs, service.BlockRun{Offset: off, Length: int64(len(part)), Digest: digest, Zero: zero})
	}
	return outer.Sum(nil), runs
}

// sparseDevice is a raw image of data, zeros that are written, and holes, with its
// content.
func sparseDevice(t *testing.T, random *rand.Rand, size int64) (*block.Device, []byte) {
	t.Helper()
	file := storagetest.NewMemFileWith(storagetest.MemOptions{Size: size})
	content := make([]byte, size)
	for off := int64(0); off < size; {
		n := min(1+random.Int64N(1<<random.IntN(22)), size-off)
		switch random.IntN(3) {
		case 0:
			for i := range content[off : off+n] {
				content[off+int64(i)] = byte(random.Uint32() | 1)
			}
			fallthrough
		case 1:
			file.Put(content[off:off+n], off)
		}
		off += n
	}
	return deviceOf(t, file), content
}

func deviceOf(t *testing.T, file storage.File) *block.Device {
	t.Helper()
	image, err := rawformat.New(t.Context(), storage.NewNode("disk", file, storage.NodeOptions{}))
	if err != nil {
		t.Fatal(err)
	}
	d, err := block.New([]storage.Mapper{image}, block.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// TestChecksum: all kinds of checksums, of ranges anywhere, are what they are
// computed to be in the plainest way.
func TestChecksum(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed: %d", seed)
	random := rand.New(rand.NewPCG(seed, 7))
	sums := service.NewChecksums(3)
	for _, size := range []int64{0, 1, 65536, 5<<20 + 12345, 24 << 20} {
		d, content := sparseDevice(t, random, size)
		for range 6 {
			what := service.Checksum{Hash: []string{"sha256", "blake3"}[random.IntN(2)]}
			what.Block = []int64{0, 64 << 10, 1 << 20, 8 << 20}[random.IntN(4)]
			if random.IntN(2) == 0 && size > 0 {
				what.Offset = random.Int64N(size)
			}
			what.Length = size - what.Offset
			if random.IntN(3) == 0 {
				what.Length = random.Int64N(what.Length + 1)
			}
			var told []service.BlockRun
			what.Each = func(r service.BlockRun) error {
				told = append(told, service.BlockRun{Offset: r.Offset - what.Offset, Length: r.Length, Digest: bytes.Clone(r.Digest), Zero: r.Zero})
				return nil
			}
			got, err := sums.Compute(t.Context(), d, what)
			if err != nil {
				t.Fatalf("%+v: %v", what, err)
			}
			want, runs := slowly(what.Hash, content[what.Offset:what.Offset+what.Length], what.Block)
			if !bytes.Equal(got, want) {
				t.Errorf("%s of blocks of %d, %d bytes at %d of %d: %x, want %x", what.Hash, what.Block, what.Length, what.Offset, size, got, want)
			}
			if diff := cmp.Diff(runs, told); diff != "" {
				t.Errorf("blocks of %d, %d bytes at %d of %d (-want +got):\n%.2000s", what.Block, what.Length, what.Offset, size, diff)
			}
		}
	}
}

// TestChecksumOfZeros: what the map tells to be zeros is not read, however much it
// is.
func TestChecksumOfZeros(t *testing.T) {
	file := storagetest.NewMemFileWith(storagetest.MemOptions{Size: 1 << 32})
	file.Put([]byte("here"), 1<<31)
	got, err := service.NewChecksums(0).Compute(t.Context(), deviceOf(t, file), service.Checksum{Hash: "sha256", Block: 1 << 20, Length: 1 << 32})
	if err != nil {
		t.Fatal(err)
	}
	outer, block := sha256.New(), make([]byte, 1<<20)
	zeros := sha256.Sum256(block)
	copy(block, "here")
	data := sha256.Sum256(block)
	for i := range 1 << 12 {
		if i == 1<<11 {
			_, _ = outer.Write(data[:])
		} else {
			_, _ = outer.Write(zeros[:])
		}
	}
	if want := outer.Sum(nil); !bytes.Equal(got, want) {
		t.Errorf("%s, want %s", hex.EncodeToString(got), hex.EncodeToString(want))
	}
}

// TestChecksumEnds: with the context, with the error of who is told, and with one of
// the image. Nothing goes on after it.
func TestChecksumEnds(t *testing.T) {
	d, _ := sparseDevice(t, rand.New(rand.NewPCG(1, 1)), 32<<20)
	sums := service.NewChecksums(2)
	what := service.Checksum{Hash: "sha256", Block: 64 << 10, Length: 32 << 20}
	enough := errors.New("enough")
	what.Each = func(service.BlockRun) error { return enough }
	if _, err := sums.Compute(t.Context(), d, what); !errors.Is(err, enough) {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	what.Each = func(service.BlockRun) error {
		cancel()
		return nil
	}
	if _, err := sums.Compute(ctx, d, what); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	for _, bad := range []service.Checksum{
		{Hash: "md5", Length: 1},
		{Hash: "sha256", Block: 4096, Length: 1},
		{Hash: "sha256", Block: 100_000, Length: 1},
		{Hash: "sha256", Block: 1 << 30, Length: 1},
		{Hash: "sha256", Offset: 1, Length: 32 << 20},
		{Hash: "sha256", Offset: -1, Length: 1},
	} {
		if _, err := sums.Compute(t.Context(), d, bad); err == nil {
			t.Errorf("%+v is computed", bad)
		}
	}
	// The processors are free again.
	what.Each = nil
	if _, err := sums.Compute(t.Context(), d, what); err != nil {
		t.Error(err)
	}
}
