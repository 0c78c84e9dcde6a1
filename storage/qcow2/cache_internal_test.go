package qcow2

import (
	"context"
	"errors"
	"testing"
)

// TestReplaceSupersedes replaces a slice while it is being loaded: nobody gets,
// and nothing keeps, what the load has read.
func TestReplaceSupersedes(t *testing.T) {
	for _, failure := range []error{nil, errors.New("broken")} {
		begun, end := make(chan struct{}), make(chan struct{})
		loads := 0
		c := newCache(1, 1, func(_ context.Context, key int64) (*slice, error) {
			loads++
			close(begun)
			<-end
			return &slice{key: key, entries: []uint64{1}}, failure
		})
		type answer struct {
			s   *slice
			err error
		}
		answers := make(chan answer, 2)
		get := func() {
			s, err := c.get(t.Context(), 5)
			answers <- answer{s, err}
		}
		go get()
		<-begun
		newer := &slice{key: 5, entries: []uint64{2}}
		c.replace(newer)
		for k := range int64(64) { // it is in no slot any more
			c.mu.Lock()
			c.insert(&slice{key: 100 + k})
			c.mu.Unlock()
		}
		go get()
		if a := <-answers; a.s != newer || a.err != nil {
			t.Errorf("who came later: %+v", a)
		}
		close(end)
		if a := <-answers; a.s != newer || a.err != nil {
			t.Errorf("who loaded it: %+v", a)
		}
		if s, err := c.get(t.Context(), 5); s != newer || err != nil || loads != 1 {
			t.Errorf("afterwards: %+v, %v, %d loads", s, err, loads)
		}
		newest := &slice{key: 5}
		c.replace(newest)
		if c.clean([]*slice{newer}); c.dirtyCount() != 1 {
			t.Error("what was replaced made the newest clean")
		}
		if c.clean([]*slice{newest}); c.dirtyCount() != 0 {
			t.Error("not clean")
		}
	}
}
