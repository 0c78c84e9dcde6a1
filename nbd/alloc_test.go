package nbd_test

import (
	"io"
	"testing"

	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage/nbd/wire"
)

// steady sends the same request again and again, depth at a time, and reads as
// much as comes back. It allocates nothing itself.
type steady struct {
	c     *client
	send  []byte
	reply []byte
}

func (s *steady) round() {
	if _, err := s.c.nc.Write(s.send); err != nil {
		s.c.t.Fatal(err)
	}
	if _, err := io.ReadFull(s.c.nc, s.reply); err != nil {
		s.c.t.Fatal(err)
	}
}

func newSteady(t testing.TB, v *server, m mode, r wire.Request, depth int) *steady {
	c := v.open(t, "a.raw", m)
	s := &steady{c: c}
	r.Length = 4096
	if m == extended && r.Command == wire.CmdWrite {
		r.Flags |= wire.FlagPayloadLen
	}
	var p []byte
	n := map[mode]int{simple: wire.SimpleReplySize, structured: wire.StructuredReplySize, extended: wire.ExtReplySize}[m]
	if r.Command == wire.CmdWrite {
		p = random(4096)
		if m == structured {
			n = wire.SimpleReplySize
		}
	} else if n += 4096; m != simple {
		n += wire.DataHeaderSize
	}
	for i := range depth {
		r.Cookie, r.Offset = uint64(i), uint64(i)*4096
		s.send = append(append(s.send, header(&r, c.extended)...), p...)
	}
	s.reply = make([]byte, n*depth)
	return s
}

// TestAllocations: a request of 4 KiB allocates nothing in the steady state.
func TestAllocations(t *testing.T) {
	if raceEnabled {
		return // pools lose on purpose under the race detector
	}
	v := serve(t, setup{service: service.Options{Recheck: 1 << 40}}, raw(t, "a.raw", random(mib)))
	for _, command := range []wire.Command{wire.CmdRead, wire.CmdWrite} {
		for _, m := range modes {
			const depth = 16
			s := newSteady(t, v, m, wire.Request{Command: command}, depth)
			for range 20 {
				s.round()
			}
			if got := testing.AllocsPerRun(200, s.round) / depth; got > 0.1 {
				t.Errorf("%v, %v: %.2f allocations a request", command, m, got)
			}
		}
	}
}

func BenchmarkRequest(b *testing.B) {
	v := serve(b, setup{service: service.Options{Recheck: 1 << 40}}, raw(b, "a.raw", random(mib)))
	for _, command := range []wire.Command{wire.CmdRead, wire.CmdWrite} {
		b.Run(command.String(), func(b *testing.B) {
			const depth = 64
			s := newSteady(b, v, structured, wire.Request{Command: command}, depth)
			b.SetBytes(4096)
			b.ReportAllocs()
			for i := 0; i < b.N; i += depth {
				s.round()
			}
		})
	}
}
