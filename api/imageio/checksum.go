package imageio

import (
	"crypto/sha256"
	"crypto/sha3"
	"crypto/sha512"
	"encoding/hex"
	"fmt"
	"hash"
	"maps"
	"slices"
	"strings"

	"golang.org/x/crypto/blake2b"
	"golang.org/x/crypto/blake2s"

	"github.com/extentd/extentd/api"
	"github.com/extentd/extentd/auth"
	"github.com/extentd/extentd/service"
)

// Sizes of the blocks whose digests the checksum is of, bytes.
const (
	defaultBlock = 4 << 20
	minBlock     = 1 << 20
	maxBlock     = 16 << 20
	blockUnit    = 4096
)

const defaultAlgorithm = "blake2b"

// algorithms are those of the peer that collisions are not known of, by its names.
// Those of BLAKE2 have digests of 32 bytes.
func algorithms() map[string]func() hash.Hash {
	return map[string]func() hash.Hash{
		"blake2b":  func() hash.Hash { h, _ := blake2b.New256(nil); return h }, // without a key it cannot fail
		"blake2s":  func() hash.Hash { h, _ := blake2s.New256(nil); return h },
		"sha224":   sha256.New224,
		"sha256":   sha256.New,
		"sha384":   sha512.New384,
		"sha512":   sha512.New,
		"sha3_224": func() hash.Hash { return sha3.New224() },
		"sha3_256": func() hash.Hash { return sha3.New256() },
		"sha3_384": func() hash.Hash { return sha3.New384() },
		"sha3_512": func() hash.Hash { return sha3.New512() },
	}
}

// A checksumAnswer is what the checksum is.
type checksumAnswer struct {
	Algorithm string `json:"algorithm"`
	BlockSize int64  `json:"block_size"`
	Checksum  string `json:"checksum"`
}

// algorithmNames implements GET /images/{ticket}/checksum/algorithms.
func algorithmNames(x *api.Exchange) error {
	return x.SendJSON(map[string][]string{"algorithms": slices.Sorted(maps.Keys(algorithms()))})
}

// checksum implements GET /images/{ticket}/checksum.
func checksum(x *api.Exchange) error {
	values, err := x.Query("algorithm", "block_size")
	if err != nil {
		return err
	}
	s := summer{block: defaultBlock}
	answer := checksumAnswer{Algorithm: defaultAlgorithm}
	if values.Has("algorithm") {
		answer.Algorithm = values.Get("algorithm")
	}
	all := algorithms()
	if s.hash = all[answer.Algorithm]; s.hash == nil {
		return api.Invalid("algorithm", "must be one of "+strings.Join(slices.Sorted(maps.Keys(all)), ", "))
	}
	if values.Has("block_size") {
		n, ok := number(values.Get("block_size"))
		if !ok || n < minBlock || n > maxBlock || n%blockUnit != 0 {
			return api.Invalid("block_size", fmt.Sprintf("must be from %d to %d, and a multiple of %d", minBlock, maxBlock, blockUnit))
		}
		s.block = n
	}
	h, err := x.Acquire(image(x), auth.Read)
	if err != nil {
		return err
	}
	defer h.Release()
	sum, err := s.image(x, h)
	if err != nil {
		return err
	}
	answer.BlockSize, answer.Checksum = s.block, hex.EncodeToString(sum)
	return x.SendJSON(answer)
}

// A summer computes a digest of the digests of all blocks.
type summer struct {
	hash  func() hash.Hash
	block int64

	size  int64 // of the image
	total hash.Hash
	zero  []byte // the digest of a block of zeros
	done  int64  // up to here
}

// image computes the checksum. Blocks that the map knows to be zeros are not read.
func (s *summer) image(x *api.Exchange, h *service.Handle) ([]byte, error) {
	s.size, s.total, s.zero = h.Device().Size(), s.hash(), s.zeros(s.block)
	for e, err := range api.Extents(x.Context(), h, api.Window{Length: s.size}, "", zeroFlags) {
		if err != nil {
			return nil, err
		}
		if e.Flags&isZero != 0 || e.Offset+e.Length <= s.done {
			continue
		}
		s.skip(max(s.done, e.Offset/s.block*s.block))
		for s.done < e.Offset+e.Length {
			if err := s.data(x, h); err != nil {
				return nil, err
			}
		}
	}
	s.skip(s.size)
	return s.total.Sum(nil), nil
}

// data adds the next block.
func (s *summer) data(x *api.Exchange, h *service.Handle) error {
	n := min(s.block, s.size-s.done)
	sum := s.hash()
	if err := x.CopyTo(sum, h, api.Window{Offset: s.done, Length: n}); err != nil {
		return err
	}
	s.total.Write(sum.Sum(nil))
	s.done += n
	return nil
}

// skip adds blocks of zeros.
func (s *summer) skip(to int64) {
	for s.done < to {
		n := min(s.block, s.size-s.done)
		if n == s.block {
			s.total.Write(s.zero)
		} else {
			s.total.Write(s.zeros(n))
		}
		s.done += n
	}
}

// zeros is the digest of n zeros.
func (s *summer) zeros(n int64) []byte {
	sum := s.hash()
	var some [4096]byte
	for ; n > 0; n -= int64(len(some)) {
		sum.Write(some[:min(n, int64(len(some)))])
	}
	return sum.Sum(nil)
}
