package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
)

// Allocate reserves blocks that nobody sees: n bytes, rounded up to whole clusters.
// They are the caller's for an hour after he last used them.
func (d *Disk) Allocate(ctx context.Context, n int64) (*Allocation, error) {
	a := new(Allocation)
	resp, err := once(func(key *IdempotencyKey) (*http.Response, error) {
		return d.server.API.CreateAllocation(ctx, d.name, &CreateAllocationParams{IdempotencyKey: key}, AllocationRequest{Length: &n})
	})
	if err == nil {
		err = decode(resp, a, http.StatusCreated)
	}
	if err != nil {
		return nil, d.failed(fmt.Sprintf("allocate %d bytes", n), err)
	}
	return a, nil
}

// Fill writes the first n bytes of r into an allocation, at off of it.
func (d *Disk) Fill(ctx context.Context, allocation string, r io.ReaderAt, off, n int64) error {
	if n == 0 {
		return nil
	}
	at := fmt.Sprintf("bytes %d-%d/*", off, off+n-1)
	resp, err := d.server.API.PutAllocationDataWithBody(ctx, d.name, allocation, &PutAllocationDataParams{ContentRange: &at}, octets, nil, from(r, n))
	if err == nil {
		err = done(resp, http.StatusNoContent)
	}
	if err != nil {
		return d.failed(fmt.Sprintf("fill %d bytes at %d of allocation %s", n, off, allocation), err)
	}
	return nil
}

// Update changes the map: all updates in order, or up to the first that fails. An
// ETag, if it is not "", is the generation that the map must have still. The result
// is the one that it has now.
func (d *Disk) Update(ctx context.Context, etag string, updates ...MappingUpdate) (generation string, err error) {
	var result MappingResult
	resp, err := once(func(key *IdempotencyKey) (*http.Response, error) {
		return d.server.API.UpdateMappings(ctx, d.name, &UpdateMappingsParams{IfMatch: optional(etag), IdempotencyKey: key}, MappingUpdates{Updates: updates})
	})
	if err == nil {
		err = decode(resp, &result, http.StatusOK)
	}
	if err != nil {
		return "", d.failed("change the map", err)
	}
	return result.Generation, nil
}

// GiveBack frees what is not mapped of an allocation.
func (d *Disk) GiveBack(ctx context.Context, allocation string) error {
	resp, err := d.server.API.DeleteAllocation(ctx, d.name, allocation)
	if err == nil {
		err = done(resp, http.StatusNoContent)
	}
	if err != nil {
		return d.failed("give back allocation "+allocation, err)
	}
	return nil
}

// Publish makes the first n bytes of r what the image has at off, all at once:
// others see all of it or nothing. Both are multiples of the image's cluster, and
// the format has allocations, as qcow2 does.
func (d *Disk) Publish(ctx context.Context, r io.ReaderAt, off, n int64) (generation string, err error) {
	a, err := d.Allocate(ctx, n)
	if err != nil {
		return "", err
	}
	defer func() {
		err = errors.Join(err, d.GiveBack(context.WithoutCancel(ctx), a.Id))
	}()
	if err := d.Fill(ctx, a.Id, r, 0, n); err != nil {
		return "", err
	}
	return d.Update(ctx, "", MappingUpdate{Offset: off, Length: n, Target: a.Target(0)})
}

// Target is what an update makes of a range with the blocks at off of the
// allocation.
func (a *Allocation) Target(off int64) MappingTarget {
	return MappingTarget{Kind: MappingTargetKindData, Allocation: &a.Id, AllocationOffset: &off}
}
