package wire_test

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/extentd/extentd/storage/nbd/wire"
)

// FuzzServer parses what a client sends. What is understood is the same when it
// is written again.
func FuzzServer(f *testing.F) {
	f.Add(wire.AppendGo(nil, &wire.GoRequest{Name: "a", Infos: []wire.Info{3}}))
	f.Add(wire.AppendMeta(nil, &wire.MetaRequest{Name: "a", Queries: []string{"base:allocation"}}))
	f.Add(wire.AppendStatusQuery(nil, 4096, []uint32{1, 2}))
	f.Add(wire.AppendOption(nil, wire.OptList, make([]byte, 16)))
	p := make([]byte, wire.ExtRequestSize)
	wire.PutRequest(p, &wire.Request{Command: wire.CmdWrite, Length: 9}, true)
	f.Add(p)
	f.Fuzz(func(t *testing.T, p []byte) {
		if g, ok := wire.ParseGo(p); ok && !bytes.Equal(wire.AppendGo(nil, &g), p) {
			t.Errorf("go: %+v", g)
		}
		if m, ok := wire.ParseMeta(p); ok && !bytes.Equal(wire.AppendMeta(nil, &m), p) {
			t.Errorf("meta context: %+v", m)
		}
		if n, ids, ok := wire.ParseStatusQuery(p, 16); ok && !bytes.Equal(wire.AppendStatusQuery(nil, n, ids), p) {
			t.Errorf("status query: %d, %v", n, ids)
		}
		if len(p) >= wire.OptionSize {
			if h, err := wire.ParseOption(p[:wire.OptionSize]); err == nil && h.Reply != 0 {
				t.Errorf("option: %+v", h)
			}
		}
		for _, extended := range []bool{false, true} {
			size := wire.RequestSize
			if extended {
				size = wire.ExtRequestSize
			}
			if len(p) < size {
				continue
			}
			r, err := wire.ParseRequest(p[:size], extended)
			if err != nil {
				continue
			}
			again := make([]byte, size)
			if wire.PutRequest(again, &r, extended); !bytes.Equal(again, p[:size]) {
				t.Errorf("request: %+v", r)
			}
		}
	})
}

// FuzzClient parses what a server sends.
func FuzzClient(f *testing.F) {
	f.Add(wire.AppendGreeting(nil, 3))
	f.Add(wire.AppendOptionReply(nil, wire.OptGo, wire.RepInfo, make([]byte, 12)))
	f.Add(wire.AppendInfoExport(nil, 1, 1))
	f.Add(wire.AppendInfoBlockSize(nil, 1, 4096, 1<<25))
	f.Add(wire.AppendMetaContext(nil, 1, "base:allocation"))
	f.Add(wire.AppendServer(nil, "a", "b"))
	f.Add(wire.AppendHole(nil, 1, 2))
	f.Add(wire.AppendError(nil, wire.EIO, "text"))
	for _, extended := range []bool{false, true} {
		f.Add(status(extended, wire.Descriptor{Length: 1, Flags: 2}, wire.Descriptor{Length: 3, Flags: 4}))
		f.Add(wire.AppendChunk(nil, &wire.Reply{Chunk: wire.ChunkOffsetData, Length: 9}, extended))
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) >= wire.GreetingSize {
			_, _ = wire.ParseGreeting(p[:wire.GreetingSize])
		}
		if len(p) >= wire.OptionReplySize {
			if h, err := wire.ParseOptionReply(p, wire.OptGo); err == nil && h.Length > wire.MaxOption {
				t.Errorf("an answer of %d bytes", h.Length)
			}
		}
		var e wire.ExportInfo
		_, _ = wire.ParseInfo(p, &e)
		_, _, _ = wire.ParseMetaContext(p)
		_, _, _ = wire.ParseServer(p)
		if _, n, err := wire.ParseHole(p); err == nil && n == 0 {
			t.Error("a hole of nothing")
		}
		for _, c := range []wire.Chunk{wire.ChunkError, wire.ChunkErrorOffset} {
			if errno, _, _, err := wire.ParseError(c, p); err == nil && errno == 0 {
				t.Error("an error that is none")
			}
		}
		for _, extended := range []bool{false, true} {
			fuzzReply(t, p, extended)
		}
	})
}

func fuzzReply(t *testing.T, p []byte, extended bool) {
	if id, list, err := wire.ParseStatus(p, nil, extended); err == nil {
		again := make([]byte, wire.StatusHeaderSize(extended))
		wire.PutStatusHeader(again, id, len(list), extended)
		for _, d := range list {
			again = wire.AppendDescriptor(again, d, extended)
		}
		if diff := cmp.Diff(p, again); diff != "" {
			t.Error(diff)
		}
	}
	if len(p) < 4 {
		return
	}
	size, err := wire.ReplySize(p, extended)
	if err != nil || len(p) < size {
		return
	}
	r, err := wire.ParseReply(p[:size])
	if err == nil && r.Length > wire.MaxPayload {
		t.Errorf("a chunk of %d bytes", r.Length)
	}
	if err != nil || r.Simple {
		return
	}
	if again := wire.AppendChunk(nil, &r, extended); !bytes.Equal(again, p[:size]) {
		t.Errorf("chunk: %+v", r)
	}
}
