package nbd_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/nbd"
	"github.com/extentd/extentd/storage/nbd/wire"
)

// FuzzClient has a server send anything, after a good handshake or instead of one. The
// client neither hangs nor crashes, and believes nothing that breaks the protocol.
func FuzzClient(f *testing.F) {
	option := func(o wire.Option, r wire.OptionReply, b []byte) []byte { return wire.AppendOptionReply(nil, o, r, b) }
	var hello []byte
	for _, part := range [][]byte{
		wire.AppendGreeting(nil, wire.FlagFixedNewstyle|wire.FlagNoZeroes),
		option(wire.OptExtendedHeaders, wire.RepErrUnsup, nil),
		option(wire.OptStructuredReply, wire.RepAck, nil),
		option(wire.OptSetMetaContext, wire.RepMetaContext, wire.AppendMetaContext(nil, 7, wire.BaseAllocation)),
		option(wire.OptSetMetaContext, wire.RepAck, nil),
		option(wire.OptGo, wire.RepInfo, wire.AppendInfoExport(nil, 8192, usual)),
		option(wire.OptGo, wire.RepAck, nil),
	} {
		hello = append(hello, part...)
	}
	chunk := func(cookie uint64, kind wire.Chunk, payload []byte) []byte {
		h := wire.Reply{Chunk: kind, Flags: wire.FlagDone, Cookie: cookie, Length: uint64(len(payload))}
		return append(wire.AppendChunk(nil, &h, false), payload...)
	}
	read := chunk(1, wire.ChunkOffsetData, append(wire.AppendDataHeader(nil, 0), bytes.Repeat([]byte{5}, 4096)...))
	f.Add(true, read)
	f.Add(true, chunk(1, wire.ChunkOffsetHole, wire.AppendHole(nil, 0, 4096)))
	f.Add(true, chunk(1, wire.ChunkError, wire.AppendError(nil, wire.EIO, "text")))
	status := make([]byte, 4)
	wire.PutStatusHeader(status, 7, 1, false)
	f.Add(true, append(bytes.Clone(read), chunk(2, wire.ChunkBlockStatus, wire.AppendDescriptor(status, wire.Descriptor{Length: 4096, Flags: 3}, false))...))
	f.Add(true, []byte{})
	f.Add(false, append(bytes.Clone(hello), read...))
	f.Add(false, hello[:40])
	f.Fuzz(func(t *testing.T, negotiated bool, sent []byte) {
		if negotiated {
			sent = append(bytes.Clone(hello), sent...)
		}
		uri, stop := raw(t, sent)
		defer stop()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		file, err := nbd.Open(ctx, nbd.Options{
			URI: uri, Connections: 2,
			DialTimeout: 20 * time.Millisecond, Timeout: 10 * time.Millisecond, Reconnect: 10 * time.Millisecond,
		})
		if err != nil {
			return
		}
		size, _ := file.Size(ctx)
		n := min(size, 4096)
		var wg sync.WaitGroup
		p := make([]byte, 4096)
		got, err := file.ReadAt(ctx, p, 0)
		if err == nil && got != 4096 || errors.Is(err, io.EOF) && int64(got) != n {
			t.Errorf("%d bytes, %v", got, err)
		}
		wg.Go(func() { _, _ = file.WriteAt(ctx, p[:n], 0) })
		wg.Go(func() { _ = file.Zero(ctx, 0, n, true) })
		wg.Go(func() { _ = file.Flush(ctx) })
		if n > 0 {
			node := storage.NewNode("n", file, storage.NodeOptions{Check: true})
			var l storage.ExtentList
			if err := node.Extents(ctx, 0, n, &l); errors.Is(err, storage.ErrContract) {
				t.Error(err)
			}
		}
		wg.Wait()
		if ctx.Err() != nil {
			t.Error("it hangs")
		}
		begin := time.Now()
		if err := file.Close(); err != nil || time.Since(begin) > 4*time.Second {
			t.Error("close", err, time.Since(begin))
		}
	})
}
