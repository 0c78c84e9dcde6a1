package block_test

import (
	"bytes"
	"context"
	"errors"
	"math"
	"testing"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/block"
)

// What is wrong with a request is told, and changes nothing.
func TestBadRequestsChangeNothing(t *testing.T) {
	const size = 10 << 10 // the last cluster is half
	m := newClusterMapper(clusterOptions{size: size, cluster: 4096, sub: 1024})
	changes := 0
	d, err := block.New([]storage.Mapper{m}, block.Options{Changing: func(bool) { changes++ }})
	must(t, err)
	ctx := t.Context()
	must(t, d.StartWriting(ctx))
	content := make([]byte, size)
	fillRandom(content, 1)
	must(t, d.WriteAt(ctx, content, 0))
	must(t, d.Zero(ctx, 4096, size-4096, true))
	claim, err := d.Claim(ctx, 4096, 4096)
	must(t, err)
	defer claim.Release()
	b, err := d.Alloc(ctx, 4096, storage.AllocOptions{})
	must(t, err)
	data := storage.Target{Kind: storage.ToData, Node: b.Node, NodeOffset: b.Offset}
	zero := storage.Target{Kind: storage.ToZero}
	p := make([]byte, 100)
	canceled, cancel := context.WithCancel(ctx)
	cancel()
	changes = 0
	for name, tt := range map[string]struct {
		err  error
		want error
	}{
		"write past the end":       {d.WriteAt(ctx, p, size-99), storage.ErrOutOfRange},
		"write before the start":   {d.WriteAt(ctx, p, -1), storage.ErrOutOfRange},
		"write that overflows":     {d.WriteAt(ctx, p, math.MaxInt64-50), storage.ErrOutOfRange},
		"zero past the end":        {d.Zero(ctx, 1, size, false), storage.ErrOutOfRange},
		"zero that overflows":      {d.Zero(ctx, 1, math.MaxInt64, false), storage.ErrOutOfRange},
		"trim of less than none":   {d.Trim(ctx, 10, -1), storage.ErrOutOfRange},
		"update past the end":      {d.Update(ctx, 8192, 4096, zero), storage.ErrOutOfRange},
		"update of half a cluster": {d.Update(ctx, 0, 2048, zero), storage.ErrMisaligned},
		"update from the middle":   {d.Update(ctx, 8192+1024, 1024, zero), storage.ErrMisaligned},
		"data from the middle":     {d.Update(ctx, 0, 4096, storage.Target{Kind: storage.ToData, Node: b.Node, NodeOffset: 100}), storage.ErrMisaligned},
		"data from far away":       {d.Update(ctx, 0, 4096, storage.Target{Kind: storage.ToData, Node: b.Node, NodeOffset: math.MaxInt64 - 4095}), storage.ErrOutOfRange},
		"data from nowhere":        {d.Update(ctx, 0, 4096, storage.Target{Kind: storage.ToData}), storage.ErrContract},
		"update to nothing":        {d.Update(ctx, 0, 4096, storage.Target{}), storage.ErrInvalid},
		"update over a claim":      {d.Update(ctx, 0, 8192, zero), storage.ErrConflict},
		"data over a claim":        {d.Update(ctx, 4096, 4096, data), storage.ErrConflict},
		"write over a claim":       {d.WriteAt(ctx, content[:5000], 0), storage.ErrConflict},
		"zero over a claim":        {d.Zero(ctx, 0, size, false), storage.ErrConflict},
		"trim over a claim":        {d.Trim(ctx, 0, size), storage.ErrConflict},
		"shrink into a claim":      {d.Resize(ctx, 8191, true), storage.ErrConflict},
		"shrink unasked":           {d.Resize(ctx, 9000, false), storage.ErrInvalid},
		"grow beyond all":          {d.Resize(ctx, storage.MaxSize+1, false), storage.ErrInvalid},
		"size below zero":          {d.Resize(ctx, -1, true), storage.ErrInvalid},
		"claim of data":            {claimError(d.Claim(ctx, 0, 4096)), storage.ErrConflict},
		"claim of a claim":         {claimError(d.Claim(ctx, 4096, size-4096)), storage.ErrConflict},
		"claim of nothing":         {claimError(d.Claim(ctx, 0, 0)), storage.ErrOutOfRange},
		"claim of half":            {claimError(d.Claim(ctx, 8192, 100)), storage.ErrMisaligned},
		"publish outside":          {claim.Publish(ctx, 0, 4096), storage.ErrOutOfRange},
		"publish half":             {claim.Publish(ctx, 4096, 2048), storage.ErrMisaligned},
		"fill beyond":              {d.FillBlocks(ctx, b, p, 4090), storage.ErrOutOfRange},
		"fill before":              {d.FillBlocks(ctx, b, p, -1), storage.ErrOutOfRange},
		"reserve nothing":          {allocError(d.Alloc(ctx, 0, storage.AllocOptions{})), storage.ErrOutOfRange},
		"free what is mapped":      {d.Free(ctx, storage.Blocks{Node: b.Node, Offset: 4096, Length: 4096}), storage.ErrConflict},
		"canceled write":           {d.WriteAt(canceled, p, 0), context.Canceled},
		"canceled zero":            {d.Zero(canceled, 0, 4096, false), context.Canceled},
		"canceled resize":          {d.Resize(canceled, 20<<10, false), context.Canceled},
		"canceled update":          {d.Update(canceled, 0, 4096, zero), context.Canceled},
	} {
		if !errors.Is(tt.err, tt.want) {
			t.Errorf("%s: %v, not %v", name, tt.err, tt.want)
		}
	}
	if changes > 0 {
		t.Errorf("%d changes were announced", changes)
	}
	clear(content[4096:])
	got := make([]byte, size)
	must(t, d.ReadAt(ctx, got, 0))
	if !bytes.Equal(got, content) || d.Size() != size {
		t.Error("something has changed")
	}
	must(t, d.Free(ctx, b))
	var misaligned *storage.MisalignedError
	if err := d.Update(ctx, 100, 4096, zero); !errors.As(err, &misaligned) || *misaligned != (storage.MisalignedError{Minimum: 4096, Offset: 100, Length: 4096}) {
		t.Errorf("a misaligned update: %v", err)
	}
}

func claimError(_ *block.Claim, err error) error { return err }

func allocError(_ storage.Blocks, err error) error { return err }

// encrypted is a layer whose data is cipher text.
type encrypted struct{ *clusterMapper }

func (encrypted) Encryption() string { return "luks" }

// What cannot be written says so, each in its way.
func TestWhatCannotBeWritten(t *testing.T) {
	ctx := t.Context()
	opt := clusterOptions{size: 4096, cluster: 4096, sub: 4096}
	if err := newDevice(t, []storage.Mapper{uniform(make([]byte, unitSize), 0)}).StartWriting(ctx); !errors.Is(err, storage.ErrReadOnly) {
		t.Errorf("a layer that cannot be written: %v", err)
	}
	closed := newDevice(t, []storage.Mapper{newClusterMapper(opt)})
	cipher := newDevice(t, []storage.Mapper{encrypted{newClusterMapper(opt)}})
	must(t, cipher.StartWriting(ctx))
	fixed := rawDevice(t, 4096)
	everything := map[string]func(d *block.Device) error{
		"write":  func(d *block.Device) error { return d.WriteAt(ctx, []byte{1}, 0) },
		"zero":   func(d *block.Device) error { return d.Zero(ctx, 0, 1, false) },
		"trim":   func(d *block.Device) error { return d.Trim(ctx, 0, 1) },
		"resize": func(d *block.Device) error { return d.Resize(ctx, 8192, false) },
		"update": func(d *block.Device) error { return d.Update(ctx, 0, 4096, storage.Target{Kind: storage.ToZero}) },
	}
	byHand := map[string]func(d *block.Device) error{
		"alloc": func(d *block.Device) error { return allocError(d.Alloc(ctx, 1, storage.AllocOptions{})) },
		"free":  func(d *block.Device) error { return d.Free(ctx, storage.Blocks{}) },
		"fill":  func(d *block.Device) error { return d.FillBlocks(ctx, storage.Blocks{}, nil, 0) },
		"claim": func(d *block.Device) error { return claimError(d.Claim(ctx, 0, 4096)) },
		"data": func(d *block.Device) error {
			return d.Update(ctx, 0, 4096, storage.Target{Kind: storage.ToData})
		},
	}
	for _, ops := range []map[string]func(*block.Device) error{everything, byHand} {
		for name, op := range ops {
			if err := op(closed); !errors.Is(err, storage.ErrReadOnly) {
				t.Errorf("%s before it is writable: %v", name, err)
			}
			if err := op(cipher); !errors.Is(err, storage.ErrUnsupported) {
				t.Errorf("%s of an encrypted image: %v", name, err)
			}
		}
	}
	for name, op := range byHand {
		if err := op(fixed); !errors.Is(err, storage.ErrUnsupported) {
			t.Errorf("%s of a raw image: %v", name, err)
		}
	}
	for name, op := range everything {
		if err := op(fixed); err != nil {
			t.Errorf("%s of a raw image: %v", name, err)
		}
	}
}
