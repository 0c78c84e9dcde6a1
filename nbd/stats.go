package nbd

import (
	"sync/atomic"

	"github.com/extentd/extentd/storage/nbd/wire"
)

// Stats is what a server has counted since it was made, and what there is now.
type Stats struct {
	Connections uint64 // that were served, or are
	Refused     uint64 // connections that were one too many
	Open        int64  // connections now
	Memory      int64  // that requests under way have, bytes
	MaxMemory   int64
	Commands    [Commands]CommandStats
}

// Commands is how many kinds of requests are counted apart: those of the
// protocol, and last all that are none.
const Commands = int(wire.CmdBlockStatus) + 2

// CommandName is how a kind of requests is called, snake_case.
func CommandName(i int) string {
	names := [Commands]string{"read", "write", "disconnect", "flush", "trim", "cache", "write_zeroes", "block_status", "unknown"}
	return names[i]
}

// CommandStats are of the requests of one kind that were answered.
type CommandStats struct {
	Requests, Errors uint64
	// Bytes were read, written, or in the range of other requests, which succeeded.
	Bytes uint64
}

// counts are what a connection counts. Its own, so that cores that serve others
// do not get into each other's way.
type counts [Commands]struct{ requests, errors, bytes atomic.Uint64 }

// kindOf is the index of a command among the kinds.
func kindOf(c wire.Command) int { return min(int(c), Commands-1) }

// count counts a request that was answered.
func (c *counts) count(r *request, err error) {
	of := &c[kindOf(r.Command)]
	of.requests.Add(1)
	if err != nil {
		of.errors.Add(1)
	} else {
		of.bytes.Add(r.Length)
	}
}

func (c *counts) addTo(to *[Commands]CommandStats) {
	for i := range c {
		to[i].Requests += c[i].requests.Load()
		to[i].Errors += c[i].errors.Load()
		to[i].Bytes += c[i].bytes.Load()
	}
}

// Stats are of one moment.
func (s *Server) Stats() Stats {
	s.memory.mu.Lock()
	free := s.memory.free
	s.memory.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	st := Stats{
		Connections: s.last.Load() - s.refused, Refused: s.refused, Open: int64(len(s.conns)),
		Memory: s.opt.MaxMemory - free, MaxMemory: s.opt.MaxMemory, Commands: s.ended,
	}
	for c := range s.conns {
		c.counts.addTo(&st.Commands)
	}
	return st
}
