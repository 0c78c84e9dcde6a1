package service

import (
	"sync/atomic"
	"time"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/block"
)

// A Handle is an open image. All who acquire it while its files are unchanged
// share it; each releases it once.
type Handle struct {
	s      *Service
	name   string
	chain  chain
	device *block.Device

	generation, dataGeneration string

	refs   atomic.Int32  // users, and one more while the service keeps it
	used   atomic.Bool   // since the janitor last looked
	quiet  int           // sweeps in a row without use; guarded by Service.mu
	tokens chan struct{} // where the handle has a token, and puts it back
	seen   atomic.Int64  // when the files were last looked at, Unix nanoseconds
}

// Name is the image's name.
func (h *Handle) Name() string { return h.name }

// Device reads the image and its map. It must not be used after Release.
func (h *Handle) Device() *block.Device { return h.device }

// Generation is an opaque string of [A-Za-z0-9-] that changes when the map
// does. While no file of the image changes it stays the same, across restarts
// too.
func (h *Handle) Generation() string { return h.generation }

// DataGeneration likewise changes with any write.
func (h *Handle) DataGeneration() string { return h.dataGeneration }

// Path is where a node of the image is on the host, "" if it is none of its
// nodes. It is for a local user: a server must not tell it.
func (h *Handle) Path(node *storage.Node) string {
	for i := range h.chain.files {
		if h.chain.files[i].node == node {
			return h.chain.files[i].host
		}
	}
	return ""
}

// Release gives the handle back. After the last one the service may close it.
func (h *Handle) Release() {
	h.used.Store(true)
	switch h.refs.Add(-1) {
	case 0:
		h.close()
	case 1:
		if h.s.hungry.Load() > 0 {
			h.s.evict(h)
		}
	}
}

// close runs once: nobody holds the handle, and nobody can find it.
func (h *Handle) close() {
	// Nothing was written: that closing a file fails changes nothing.
	_ = h.chain.close()
	<-h.tokens
}

// current reports whether the files are what they were when the handle was
// opened, as of Options.Recheck ago at most. Under load that spares a small read
// a system call, 7 % of its time.
func (h *Handle) current() bool {
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
	top := &h.chain.files[0]
	id, err := top.identify()
	if err != nil || id != top.identity {
		return false
	}
	for i := 1; i < len(h.chain.files); i++ {
		f := &h.chain.files[i]
		if id, err := f.file.Identity(); err != nil || id != f.identity {
			return false
		}
	}
	return true
}

// LayerFormat is the format of the layer at depth.
func (h *Handle) LayerFormat(depth int) string { return h.chain.layers[depth].format }
