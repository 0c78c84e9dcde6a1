package wire_test

import (
	"bytes"
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/extentd/extentd/storage/nbd/wire"
)

func TestGreeting(t *testing.T) {
	p := wire.AppendGreeting(nil, wire.FlagFixedNewstyle)
	if string(p[:16]) != "NBDMAGICIHAVEOPT" || len(p) != wire.GreetingSize {
		t.Errorf("%q", p)
	}
	if flags, err := wire.ParseGreeting(p); err != nil || flags != wire.FlagFixedNewstyle {
		t.Error(flags, err)
	}
	for _, text := range []string{"NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53\x00\x00", "NBDMAGICIHAVEOPX\x00\x03", "SSH-2.0-OpenSSH_10"} {
		if _, err := wire.ParseGreeting([]byte(text)); !errors.Is(err, wire.ErrProtocol) {
			t.Errorf("%q: %v", text, err)
		}
	}
	offered := wire.FlagFixedNewstyle | wire.FlagNoZeroes
	for flags, ok := range map[uint32]bool{0: true, 1: true, 3: true, 4: false, 1 << 16: false, 1<<31 | 1: false} {
		got, err := wire.ParseClientFlags(wire.AppendClientFlags(nil, flags), offered)
		if ok != (err == nil) || ok && uint32(got) != flags {
			t.Errorf("client flags %#x: %#x, %v", flags, got, err)
		}
	}
	for padded, want := range map[bool]int{false: wire.ExportSize, true: wire.ExportSize + wire.ExportPadding} {
		p := wire.AppendExport(nil, 1<<40, wire.HasFlags, padded)
		if e := wire.ParseExport(p); len(p) != want || e.Size != 1<<40 || e.Flags != wire.HasFlags {
			t.Errorf("%d bytes: %+v", len(p), e)
		}
	}
}

func TestOptions(t *testing.T) {
	h, err := wire.ParseOption(wire.AppendOption(nil, wire.OptGo, []byte("abc")))
	if err != nil || h.Option != wire.OptGo || h.Length != 3 {
		t.Error(h, err)
	}
	p := wire.AppendOptionReply(nil, wire.OptGo, wire.RepErrUnknown, []byte("abc"))
	h, err = wire.ParseOptionReply(p, wire.OptGo)
	if err != nil || !h.Reply.IsError() || h.Reply != wire.RepErrUnknown || h.Length != 3 {
		t.Error(h, err)
	}
	if _, err := wire.ParseOptionReply(p, wire.OptInfo); !errors.Is(err, wire.ErrProtocol) {
		t.Error(err)
	}
	if wire.RepAck.IsError() || wire.RepMetaContext.IsError() {
		t.Error("an answer is an error")
	}
	g := wire.GoRequest{Name: "a/é", Infos: []wire.Info{wire.InfoName, 99}}
	if got, ok := wire.ParseGo(wire.AppendGo(nil, &g)); !ok || !cmp.Equal(got, g) {
		t.Error(got, ok)
	}
	m := wire.MetaRequest{Name: "", Queries: []string{"base:", "", "qemu:dirty-bitmap:a"}}
	if got, ok := wire.ParseMeta(wire.AppendMeta(nil, &m)); !ok || !cmp.Equal(got, m) {
		t.Error(got, ok)
	}
	if id, name, err := wire.ParseMetaContext(wire.AppendMetaContext(nil, 7, wire.BaseAllocation)); err != nil || id != 7 || name != wire.BaseAllocation {
		t.Error(id, name, err)
	}
	if name, text, err := wire.ParseServer(wire.AppendServer(nil, "a", "b c")); err != nil || name != "a" || text != "b c" {
		t.Error(name, text, err)
	}
}

func TestInfos(t *testing.T) {
	var e wire.ExportInfo
	for _, p := range [][]byte{
		wire.AppendInfoExport(nil, 1<<61, wire.ReadOnly), wire.AppendInfoBlockSize(nil, 512, 4096, math.MaxUint32),
		wire.AppendInfoText(nil, wire.InfoName, "a"), wire.AppendInfoText(nil, 99, "x"),
	} {
		if _, err := wire.ParseInfo(p, &e); err != nil {
			t.Error(err)
		}
	}
	want := wire.ExportInfo{Size: 1 << 61, Flags: wire.ReadOnly, Minimum: 512, Preferred: 4096, Maximum: math.MaxUint32}
	if diff := cmp.Diff(want, e); diff != "" {
		t.Error(diff)
	}
	for _, p := range [][]byte{nil, {0}, {0, 0, 1}, append(wire.AppendInfoExport(nil, 1, 1), 0), {0, 3, 1, 2}} {
		if _, err := wire.ParseInfo(p, &e); !errors.Is(err, wire.ErrProtocol) {
			t.Errorf("%v: %v", p, err)
		}
	}
}

func TestValidString(t *testing.T) {
	for s, want := range map[string]bool{
		"": true, "é": true, "a\x00b": false, "\xff": false, strings.Repeat("a", wire.MaxString): true, strings.Repeat("a", wire.MaxString+1): false,
	} {
		if wire.ValidString([]byte(s)) != want {
			t.Errorf("%.10q: want %v", s, want)
		}
	}
}

func TestRequests(t *testing.T) {
	for _, extended := range []bool{false, true} {
		r := wire.Request{Flags: wire.FlagFUA, Command: wire.CmdWrite, Cookie: math.MaxUint64, Offset: 1 << 63, Length: math.MaxUint32}
		size := wire.RequestSize
		if extended {
			size, r.Length = wire.ExtRequestSize, 1<<40
		}
		p := make([]byte, size)
		wire.PutRequest(p, &r, extended)
		if got, err := wire.ParseRequest(p, extended); err != nil || got != r {
			t.Errorf("%+v, %v", got, err)
		}
		if _, err := wire.ParseRequest(append(p, 0, 0, 0, 0), !extended); !errors.Is(err, wire.ErrProtocol) {
			t.Error(err)
		}
	}
	for _, tt := range []struct {
		r        wire.Request
		extended bool
		want     uint64
	}{
		{wire.Request{Command: wire.CmdWrite, Length: 5}, false, 5},
		{wire.Request{Command: wire.CmdWrite, Length: 5}, true, 5},
		{wire.Request{Command: wire.CmdRead, Length: 5}, true, 0},
		{wire.Request{Command: wire.CmdBlockStatus, Length: 5, Flags: wire.FlagPayloadLen}, true, 5},
		{wire.Request{Command: wire.CmdBlockStatus, Length: 5, Flags: wire.FlagPayloadLen}, false, 0},
	} {
		if got := tt.r.Payload(tt.extended); got != tt.want {
			t.Errorf("%+v: %d", tt, got)
		}
	}
}

func TestReplies(t *testing.T) {
	p := make([]byte, wire.SimpleReplySize)
	wire.PutSimple(p, 9, wire.ENOSPC)
	if r, err := wire.ParseReply(p); err != nil || !r.Simple || r.Errno != wire.ENOSPC || r.Cookie != 9 {
		t.Error(r, err)
	}
	if _, err := wire.ReplySize(p, true); !errors.Is(err, wire.ErrProtocol) {
		t.Error(err)
	}
	for _, extended := range []bool{false, true} {
		want := wire.Reply{Chunk: wire.ChunkOffsetHole, Cookie: 1, Length: wire.HoleSize}
		if extended {
			want.Offset = 77
		}
		p := wire.AppendChunk(nil, &want, extended)
		wire.MarkDone(p)
		want.Flags = wire.FlagDone
		if size, err := wire.ReplySize(p, extended); err != nil || size != len(p) {
			t.Error(size, err)
		}
		if got, err := wire.ParseReply(p); err != nil || got != want {
			t.Errorf("%+v, %v", got, err)
		}
	}
	for _, tt := range []struct {
		chunk  wire.Chunk
		length uint64
		ok     bool
	}{
		{wire.ChunkNone, 0, true},
		{wire.ChunkNone, 1, false},
		{wire.ChunkOffsetData, 8, false},
		{wire.ChunkOffsetData, 9, true},
		{wire.ChunkOffsetData, wire.MaxPayload + 1, false},
		{wire.ChunkOffsetHole, 11, false},
		{wire.ChunkOffsetHole, 13, false},
		{wire.ChunkBlockStatus, 0, false},
		{wire.ChunkBlockStatus, 4, false},
		{wire.ChunkBlockStatus, 12, true},
		{wire.ChunkBlockStatus, 13, false},
		{wire.ChunkBlockStatusExt, 8, false},
		{wire.ChunkBlockStatusExt, 24, true},
		{wire.ChunkError, 5, false},
		{wire.ChunkError, 6, true},
		{wire.ChunkErrorOffset, 13, false},
		{wire.ChunkErrorOffset, math.MaxUint64, false},
	} {
		p := wire.AppendChunk(nil, &wire.Reply{Chunk: tt.chunk, Flags: wire.FlagDone, Length: tt.length}, true)
		if _, err := wire.ParseReply(p); (err == nil) != tt.ok {
			t.Errorf("chunk %d of %d bytes: %v", tt.chunk, tt.length, err)
		}
	}
	p = wire.AppendChunk(nil, &wire.Reply{Chunk: wire.ChunkNone}, false)
	if _, err := wire.ParseReply(p); !errors.Is(err, wire.ErrProtocol) {
		t.Error("an empty chunk that is not the last:", err)
	}
}

func TestChunks(t *testing.T) {
	if off := wire.ParseDataHeader(wire.AppendDataHeader(nil, 1<<50)); off != 1<<50 {
		t.Error(off)
	}
	if off, n, err := wire.ParseHole(wire.AppendHole(nil, 3, 4)); err != nil || off != 3 || n != 4 {
		t.Error(off, n, err)
	}
	if _, _, err := wire.ParseHole(wire.AppendHole(nil, 3, 0)); !errors.Is(err, wire.ErrProtocol) {
		t.Error(err)
	}
	long := strings.Repeat("x", 70_000)
	p := wire.AppendError(nil, wire.EIO, long)
	if errno, text, _, err := wire.ParseError(wire.ChunkError, p); err != nil || errno != wire.EIO || text != long[:wire.MaxString] {
		t.Error(errno, len(text), err)
	}
	p = append(wire.AppendError(nil, 0, "a"), 0, 0, 0, 0, 0, 0, 0, 5)
	if errno, text, off, err := wire.ParseError(wire.ChunkErrorOffset, p); err != nil || errno != wire.EINVAL || text != "a" || off != 5 {
		t.Error(errno, text, off, err)
	}
	if _, _, _, err := wire.ParseError(wire.ChunkErrorOffset, p[:10]); !errors.Is(err, wire.ErrProtocol) {
		t.Error(err)
	}
}

func status(extended bool, list ...wire.Descriptor) []byte {
	p := make([]byte, wire.StatusHeaderSize(extended))
	wire.PutStatusHeader(p, 5, len(list), extended)
	for _, d := range list {
		p = wire.AppendDescriptor(p, d, extended)
	}
	return p
}

func TestStatus(t *testing.T) {
	list := []wire.Descriptor{{Length: 512, Flags: 3}, {Length: math.MaxUint32, Flags: 0}}
	for _, extended := range []bool{false, true} {
		p := status(extended, list...)
		id, got, err := wire.ParseStatus(p, nil, extended)
		if diff := cmp.Diff(list, got); diff != "" || id != 5 || err != nil {
			t.Error(id, err, diff)
		}
		for _, bad := range [][]byte{nil, p[:4], p[:len(p)-1], append(bytes.Clone(p), 0), status(extended, wire.Descriptor{}), status(extended)} {
			if _, _, err := wire.ParseStatus(bad, nil, extended); !errors.Is(err, wire.ErrProtocol) {
				t.Errorf("%v: %v", bad, err)
			}
		}
	}
	overflow := status(true, wire.Descriptor{Length: 1 << 63}, wire.Descriptor{Length: 1 << 63})
	if _, _, err := wire.ParseStatus(overflow, nil, true); !errors.Is(err, wire.ErrProtocol) {
		t.Error(err)
	}
	p := status(true, list...)
	p[7]++ // the count
	if _, _, err := wire.ParseStatus(p, nil, true); !errors.Is(err, wire.ErrProtocol) {
		t.Error(err)
	}
	n, ids, ok := wire.ParseStatusQuery(wire.AppendStatusQuery(nil, 1<<40, []uint32{2, 1}), 2)
	if !ok || n != 1<<40 || !cmp.Equal(ids, []uint32{2, 1}) {
		t.Error(n, ids, ok)
	}
	for _, ids := range [][]uint32{nil, {1, 1}, {1, 2, 3}} {
		if _, _, ok := wire.ParseStatusQuery(wire.AppendStatusQuery(nil, 1, ids), 2); ok {
			t.Error(ids)
		}
	}
}
