package service

import (
	"slices"
	"sync/atomic"
	"time"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/block"
)

// A Handle is an open image under one of its names. All who acquire it while
// its files are unchanged share it; each releases it once.
type Handle struct {
	s    *Service
	name string
	top  source // where the name leads
	*image

	refs   atomic.Int32  // users, and one more while the service keeps it
	used   atomic.Bool   // since the janitor last looked
	quiet  int           // sweeps in a row without use; guarded by Service.mu
	tokens chan struct{} // where the handle has a token, and puts it back
	seen   atomic.Int64  // when the files were last looked at, Unix nanoseconds
}

// Name is the image's name.
func (h *Handle) Name() string { return h.name }

// Device reads the image and its map, and writes if the handle is Writable. It
// must not be used after Release.
func (h *Handle) Device() *block.Device { return h.device }

// Generation is an opaque string of [A-Za-z0-9-] that changes when the map
// does, before and after. While no file of the image changes it stays the same,
// across restarts too. It never comes back for another map.
func (h *Handle) Generation() string { return h.counts.mapping.current() }

// DataGeneration likewise changes with any write.
func (h *Handle) DataGeneration() string { return h.counts.data.current() }

// ClaimGeneration asks match whether the generation is the one that a change
// was meant for, and advances it if so, at once: of two who race for the same
// generation one gets true. A nil match always does.
func (h *Handle) ClaimGeneration(match func(generation string) bool) bool {
	return h.counts.claim(&h.counts.mapping, match)
}

// ClaimDataGeneration likewise claims the data generation.
func (h *Handle) ClaimDataGeneration(match func(dataGeneration string) bool) bool {
	return h.counts.claim(&h.counts.data, match)
}

// Path is where the file of a node is on the host, or of a graph that stands on
// none what its bottom is called; "" if it is none of the image's nodes. It is
// for a local user: a server must not tell it.
func (h *Handle) Path(node *storage.Node) string {
	for _, b := range h.chain.bases {
		if !slices.ContainsFunc(b.nodes, func(n openNode) bool { return n.Node == node }) {
			continue
		}
		if b.host == "" {
			return b.nodes[0].Name()
		}
		return b.host
	}
	return ""
}

// Release gives the handle back. After the last one the service may close it.
func (h *Handle) Release() {
	h.used.Store(true)
	switch h.refs.Add(-1) {
	case 0:
		h.s.report(h.name, h.close())
	case 1:
		if h.s.hungry.Load() > 0 {
			h.s.evict(h)
		}
	}
}

// close runs once: nobody holds the handle, and nobody can find it. An error
// says that what was written may not be on disk.
func (h *Handle) close() error {
	err := h.s.putImage(h.image)
	<-h.tokens
	return err
}

// current reports whether the files are what they were when the handle was
// opened, as of Options.Recheck ago at most. Under load that spares a small read
// a system call, 7 % of its time.
func (h *Handle) current() bool {
	if h.isBroken() || h.stale() {
		return false
	}
	now := time.Now().UnixNano()
	if since := now - h.seen.Load(); since >= 0 && since < int64(h.s.opt.Recheck) {
		return true
	}
	if !h.unchanged() {
		return false
	}
	h.seen.Store(now)
	return true
}

// unchanged looks at the files: the top one by its name, the others by their
// descriptors.
func (h *Handle) unchanged() bool {
	id, err := h.top.identify()
	return err == nil && h.image.current(id)
}

// LayerFormat is the format of the layer at depth.
func (h *Handle) LayerFormat(depth int) string { return h.chain.layers[depth].format }
