package api

import (
	"context"
	"encoding/hex"
	"net/http"
	"strings"

	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage"
)

// checksumParams are the parameters of a checksum.
func checksumParams() query {
	return query{"algorithm": text, "offset": integer, "length": integer, "block_size": integer}
}

// GetChecksum implements GET /v1/images/{image}/checksum.
func (s *server) GetChecksum(ctx context.Context, request GetChecksumRequestObject) (GetChecksumResponseObject, error) {
	h, err := s.acquire(ctx, request.Image)
	if err != nil {
		return nil, err
	}
	defer h.Release()
	r := callOf(ctx).r
	a := &checksumAnswer{s: s, r: r, h: h, generation: h.DataGeneration(), size: h.Device().Size()}
	a.etag = `"` + a.generation + `"`
	switch precondition(r.Header, a.etag) {
	case http.StatusPreconditionFailed:
		return nil, errPrecondition
	case http.StatusNotModified:
		return GetChecksum304Response{Headers: GetChecksum304ResponseHeaders{CacheControl: cacheMap, ETag: a.etag, Vary: "Accept"}}, nil
	}
	if err := a.ask(&request.Params, wantsLines(r.Header)); err != nil {
		return nil, err
	}
	memory := s.opt.Load.Memory()
	if err := memory.Long(ctx, service.ChecksumLeast); err != nil {
		return nil, err
	}
	defer memory.Put(service.ChecksumLeast)
	a.what.Memory = memory
	if a.lines {
		// It is sent from here, since it is computed while it is sent.
		return a.stream(ctx)
	}
	sum, err := s.sums.Compute(ctx, h.Device(), a.what)
	if err != nil {
		return nil, err
	}
	answer, err := a.finish(sum)
	if err != nil {
		return nil, err
	}
	return GetChecksum200JSONResponse{
		Headers: GetChecksum200ResponseHeaders{CacheControl: cacheMap, ETag: a.etag, Vary: "Accept"},
		Body:    answer,
	}, nil
}

// A checksumAnswer answers one request for a checksum.
type checksumAnswer struct {
	s          *server
	r          *http.Request
	h          *service.Handle
	generation string // of the data, when the answer began
	etag       string
	size       int64 // of the image, likewise
	algorithm  string
	what       service.Checksum
	lines      bool
}

// ask puts in the defaults, and checks what belongs together.
func (a *checksumAnswer) ask(p *GetChecksumParams, lines bool) error {
	a.lines, a.algorithm = lines, string(GetChecksumParamsAlgorithmSha256Blocks)
	if p.Algorithm != nil {
		a.algorithm = string(*p.Algorithm)
	}
	name, blocks := strings.CutSuffix(a.algorithm, "-blocks")
	a.what.Hash = name
	a.what.Offset = valueOf(p.Offset)
	switch {
	case blocks && p.BlockSize != nil:
		a.what.Block = *p.BlockSize
	case blocks:
		a.what.Block = service.DefaultChecksumBlock
	case p.BlockSize != nil:
		return invalid("block_size", ruleConflict, "is for algorithms of blocks")
	case lines:
		return invalid("algorithm", ruleConflict, "has no blocks, and "+ndjson+" is a list of them")
	}
	if err := storage.CheckRange(a.what.Offset, 0, a.size); err != nil {
		return err
	}
	a.what.Length = a.size - a.what.Offset
	if p.Length != nil {
		a.what.Length = *p.Length
	}
	return nil
}

// finish says what was computed, or fails if the data may not have changed and has.
func (a *checksumAnswer) finish(sum []byte) (Checksum, error) {
	c := Checksum{
		Algorithm: ChecksumAlgorithm(a.algorithm), Checksum: hex.EncodeToString(sum),
		Offset: a.what.Offset, Length: a.what.Length, Size: a.size, DataGeneration: a.generation,
	}
	if a.what.Block > 0 {
		c.BlockSize = &a.what.Block
	}
	if changed := a.h.DataGeneration() != a.generation; changed {
		if len(a.r.Header["If-Match"]) > 0 {
			return c, errPrecondition
		}
		c.Changed = &changed
	}
	return c, nil
}
