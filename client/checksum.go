package client

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
)

// ChecksumOptions say what is summed up, by sha256-blocks. The zero value is the
// whole image.
type ChecksumOptions struct {
	// Offset and Length are the range, bytes. Default: to the end of the image.
	Offset, Length int64
	// BlockSize is a power of two from 64 KiB to 64 MiB. Default: 1 MiB.
	BlockSize int64
	// Changing: the image may be written to meanwhile. Without it that is the
	// problem "precondition-failed", or a connection that breaks.
	Changing bool
	// Each is told the digests of the blocks, and of runs of blocks of zeros, in
	// order. Its error ends the call, and is returned as it is. Default: nobody is.
	Each func(BlockDigest) error
}

// A BlockDigest is the digest of a block, or of each of a run of blocks of zeros.
type BlockDigest struct {
	Offset int64  `json:"offset"`
	Length int64  `json:"length"` // of a run, a multiple of the block's size
	Digest string `json:"digest"` // in hex
	Zero   bool   `json:"zero"`
}

// Checksum has the server read the image, and returns the digest of the digests of
// its blocks: the data is not sent. A connection that breaks is made again, and only
// what is missing is asked for.
func (d *Disk) Checksum(ctx context.Context, opt ChecksumOptions) ([32]byte, error) {
	if opt.BlockSize == 0 {
		opt.BlockSize = 1 << 20
	}
	r := &checksumReader{ctx: ctx, disk: d, opt: opt, at: opt.Offset, match: d.match, sum: sha256.New()}
	err := d.server.goOn(ctx, func() int64 { return r.at }, r.once)
	var sum [32]byte
	switch {
	case r.own != nil:
		return sum, r.own
	case err != nil:
		return sum, d.failed(fmt.Sprintf("checksum at %d", r.at), err)
	}
	r.sum.Sum(sum[:0])
	return sum, nil
}

// A checksumReader reads one list of digests after the other, until it has all.
type checksumReader struct {
	ctx   context.Context // of one call
	disk  *Disk
	opt   ChecksumOptions
	at    int64 // where the next block begins
	match string
	sum   hash.Hash
	own   error // of Each
}

func (r *checksumReader) once() error {
	at := r.at
	params := &GetChecksumParams{Offset: &at, BlockSize: &r.opt.BlockSize, IfMatch: optional(r.match)}
	if r.opt.Length > 0 {
		rest := r.opt.Offset + r.opt.Length - r.at
		if rest == 0 {
			return nil // all that was missing was the end
		}
		params.Length = &rest
	}
	resp, err := r.disk.server.API.GetChecksum(r.ctx, r.disk.name, params, func(_ context.Context, req *http.Request) error {
		req.Header.Set("Accept", "application/x-ndjson")
		return nil
	})
	if err != nil {
		return err
	}
	if err := expect(resp, http.StatusOK); err != nil {
		return err
	}
	defer resp.Body.Close() //nolint:errcheck // it is read to its end, or given up
	if r.match == "" && !r.opt.Changing {
		r.match = resp.Header.Get("ETag")
	}
	lines := bufio.NewReaderSize(resp.Body, maxLine)
	for {
		line, err := lines.ReadSlice('\n')
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			return errors.New("a line of the list is too long")
		case errors.Is(err, io.EOF):
			return &brokenError{cause: errShort}
		case err != nil:
			return &brokenError{cause: err}
		}
		last, err := r.take(line)
		if err != nil || last {
			return err
		}
	}
}

// take reads a line, and reports whether it is the last.
func (r *checksumReader) take(line []byte) (last bool, err error) {
	var l struct {
		BlockDigest
		Checksum *string
	}
	if err := json.Unmarshal(line, &l); err != nil {
		return false, fmt.Errorf("a line of the list: %w", err)
	}
	if l.Checksum != nil {
		return true, nil
	}
	digest, err := hex.DecodeString(l.Digest)
	if err != nil || len(digest) != sha256.Size || l.Offset != r.at || l.Length <= 0 {
		return false, fmt.Errorf("%d bytes at %d in the list, in which %d comes next", l.Length, l.Offset, r.at)
	}
	for n := int64(0); n < l.Length; n += r.opt.BlockSize {
		_, _ = r.sum.Write(digest) // never fails
	}
	r.at += l.Length
	if r.opt.Each != nil {
		if r.own = r.opt.Each(l.BlockDigest); r.own != nil {
			return false, errEnough
		}
	}
	return false, nil
}
