package main

import (
	"fmt"
	"net"
	"runtime/debug"
	"time"

	"github.com/spf13/pflag"

	"github.com/extentd/extentd/api/conn"
	"github.com/extentd/extentd/load"
)

// LoadConfig is what a server bears.
type LoadConfig struct {
	MaxConnections int           `koanf:"max-connections"`
	MaxMemory      string        `koanf:"max-memory"`
	Rate           float64       `koanf:"rate"`
	Burst          int           `koanf:"burst"`
	Stall          time.Duration `koanf:"stall"`

	memory byteSize // MaxMemory, once checked
}

const (
	defaultMaxMemory = 512 << 20
	// leastMaxMemory is what the parts below need so that each still does
	// something.
	leastMaxMemory = 128 << 20
	// adminConnections are those of the admin listener: enough for probes.
	adminConnections = 64
)

func loadFlags(f *pflag.FlagSet) {
	f.Int("max-connections", 4096, "hold at most `N` connections over HTTP at a time, and as many requests")
	f.String("max-memory", byteSize(defaultMaxMemory).String(), "live within `SIZE` of memory, at least "+byteSize(leastMaxMemory).String())
	f.Float64("rate", 0, "let each client make `N` requests over HTTP a second; 0 for as many as it likes")
	f.Int("burst", 0, "let each client make `N` of them at once (default: twice the rate)")
	f.Duration("stall", time.Minute, "cut off HTTP clients that send or take less than 64 KiB in `DURATION`, if more is due")
}

// check refuses what cannot be meant.
func (c *LoadConfig) check() error {
	var err error
	if c.memory, err = parseByteSize(c.MaxMemory); err != nil {
		return fmt.Errorf("max-memory is %q: %w", c.MaxMemory, err)
	}
	switch {
	case c.memory < leastMaxMemory:
		return fmt.Errorf("max-memory is %v, must be at least %v", c.memory, byteSize(leastMaxMemory))
	case c.MaxConnections < 1:
		return fmt.Errorf("max-connections is %d, must be at least 1", c.MaxConnections)
	case !(c.Rate >= 0 && c.Rate <= 1e9): // it may be no number
		return fmt.Errorf("rate is %v, must be from 0 to 1,000,000,000", c.Rate)
	case c.Burst < 0:
		return fmt.Errorf("burst is %d, must not be negative", c.Burst)
	case c.Burst > 0 && c.Rate == 0:
		return fmt.Errorf("burst is %d, and there is no rate", c.Burst)
	case c.Stall < time.Second:
		return fmt.Errorf("stall is %v, must be at least 1s", c.Stall)
	}
	return nil
}

// Of all memory a quarter each is for what open images keep, for what is on its
// way over NBD, and over HTTP, which gets that of NBD too where that is not
// spoken. The last is for everything else: connections, and what the garbage
// collector has not got round to.
func (c *LoadConfig) quarter() int64 { return int64(c.memory) / 4 }

// limits are the bounds of what is served over HTTP.
func (c *LoadConfig) limits(nbd bool) *load.Limits {
	transfers := c.quarter()
	if !nbd {
		transfers *= 2
	}
	return load.New(load.Options{
		Connections: c.MaxConnections,
		Transfers:   transfers,
		Rate:        c.Rate,
		Burst:       c.Burst,
		Stall:       c.Stall,
	})
}

// collect makes the garbage collector keep the process within its memory. It is
// called by who owns the process.
func (c *LoadConfig) collect() { debug.SetMemoryLimit(int64(c.memory)) }

// within lets no more connections through than there may be, and none wait for
// ever for a client that takes nothing. Clients of HTTP in the clear (plain) are
// told. The listener of probes has a bound of its own, so that they always get
// through.
func (s *Server) within(l net.Listener, plain, probes bool) net.Listener {
	bound := s.limits.Connections()
	if bound != nil && probes {
		bound = load.NewConnections(adminConnections, s.limits.Counts())
	}
	if bound != nil {
		l = bound.Listener(l, plain)
	}
	return conn.Wrap(l, conn.Options{Stall: s.limits.Stall(), Stalled: &s.limits.Counts().Stalled})
}
