package service

import (
	"crypto/rand"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/extentd/extentd/storage/file"
)

// A counter is one generation of an image. Until the image is written to it is
// what it was when the image was opened.
type counter struct {
	base  string // before the first change
	kind  string // what every generation of the kind begins with
	epoch string // set before n leaves 0
	n     atomic.Uint64
	text  atomic.Pointer[counted]
}

// counted is the string of a count, so that it is made once.
type counted struct {
	n    uint64
	text string
}

// current costs nothing while nobody writes.
func (c *counter) current() string {
	n := c.n.Load()
	if n == 0 {
		return c.base
	}
	if t := c.text.Load(); t != nil && t.n == n {
		return t.text
	}
	t := &counted{n: n, text: c.kind + c.epoch + "-" + strconv.FormatUint(n, 36)}
	c.text.Store(t)
	return t.text
}

// counters are the two generations of an image. They change before and after
// each change, so that an answer computed across one is never taken for
// current. None is ever used again for something else: the epoch is random.
type counters struct {
	mapping, data counter
	begun         atomic.Bool
	mu            sync.Mutex // protects the beginning, and orders conditional writers
}

func (c *counters) start(mapping, data string) {
	c.mapping.base, c.mapping.kind = mapping, "m-"
	c.data.base, c.data.kind = data, "d-"
}

// changing is for block.Options.
func (c *counters) changing(mapping bool) {
	if !c.begun.Load() {
		c.mu.Lock()
		c.begin()
		c.mu.Unlock()
	}
	if mapping {
		c.mapping.n.Add(1)
	}
	c.data.n.Add(1)
}

// remapping likewise changes the generation of the map alone: what of it may be
// written to has changed, and no data has.
func (c *counters) remapping() {
	if !c.begun.Load() {
		c.mu.Lock()
		c.begin()
		c.mu.Unlock()
	}
	c.mapping.n.Add(1)
}

// begin is called with mu held.
func (c *counters) begin() {
	if c.begun.Load() {
		return
	}
	epoch := strings.ToLower(rand.Text())
	c.mapping.epoch, c.data.epoch = epoch, epoch
	c.begun.Store(true)
}

// claim compares and advances at once: of two whose match wants the same
// generation, one gets true.
func (c *counters) claim(of *counter, match func(string) bool) bool {
	if match == nil {
		return true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !match(of.current()) {
		return false
	}
	c.begin()
	of.n.Add(1)
	return true
}

// mostKept is how many closed images' generations are kept.
const mostKept = 1024

// keptGenerations are what the generations of an image were when it was closed,
// and its files.
type keptGenerations struct {
	mapping, data string
	bases         []baseState
}

// keep remembers the generations of an image that was written to and closes
// cleanly, unless the service closes too.
func (s *Service) keep(i *image) {
	if s.ctx.Err() != nil {
		return
	}
	k := keptGenerations{mapping: i.counts.mapping.current(), data: i.counts.data.current()}
	for _, b := range i.chain.bases {
		var id file.Identity
		if b.file != nil {
			// Our lock is still held: whoever writes after it leaves another time.
			var err error
			if id, err = settled(s.ctx, b.file.file); err != nil {
				return
			}
		}
		k.bases = append(k.bases, s.state(b, id))
		if g := b.shared.graph; g != nil && i.writes(b) {
			s.files.wrote(g, id)
		}
	}
	s.keptMu.Lock()
	defer s.keptMu.Unlock()
	if len(s.kept) >= mostKept {
		for key := range maps.Keys(s.kept) { // any: those that are written again are put in anew
			delete(s.kept, key)
			break
		}
	}
	s.kept[i.key] = k
}

// generations are those of an image that is being opened: kept ones, if no file
// has changed since, or derived from the files.
func (s *Service) generations(key imageKey, c *chain) (mapping, data string) {
	s.keptMu.Lock()
	k, ok := s.kept[key]
	s.keptMu.Unlock()
	if ok && slices.EqualFunc(k.bases, c.bases, func(was baseState, b *base) bool { return was == s.state(b, b.identity) }) {
		return k.mapping, k.data
	}
	return c.generations()
}
