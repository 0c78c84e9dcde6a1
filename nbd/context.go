package nbd

import (
	"strings"

	"github.com/extentd/extentd/auth"
	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage/nbd/wire"
)

// The metadata contexts, by their identifiers. Those of bitmaps have the ones from
// contextBitmaps on, in the order in which they were agreed on.
const (
	contextAllocation = iota
	contextDepth
	contextBitmaps
	contextCount = 16
)

// contextsOfMap are those that the map answers.
const contextsOfMap contextSet = 1<<contextAllocation | 1<<contextDepth

var mapContexts = [contextBitmaps]string{wire.BaseAllocation, wire.AllocationDepth}

// A contextSet is some of the identifiers.
type contextSet uint16

func (c contextSet) has(id int) bool { return c&(1<<id) != 0 }

// count is how many there are.
func (c contextSet) count() int64 {
	n := int64(0)
	for ; c != 0; c &= c - 1 {
		n++
	}
	return n
}

// contexts are what a client has agreed on.
type contexts struct {
	set     contextSet
	bitmaps []bitmapContext // by identifier, from contextBitmaps on
}

// A bitmapContext is a bitmap of the export.
type bitmapContext struct {
	name        string
	granularity int64 // bytes, as of when it was agreed on
}

// metaContext serves OptListMetaContext and OptSetMetaContext.
func (n *negotiation) metaContext(o wire.Option, data []byte) {
	set := o == wire.OptSetMetaContext
	if set {
		n.contexts, n.of = contexts{}, "" // even if it fails
	}
	m, ok := wire.ParseMeta(data)
	if !ok || !n.structured {
		n.fail(o, wire.RepErrInvalid, "malformed, or before structured replies are agreed on")
		return
	}
	name, err := n.resolve(m.Name)
	var h *service.Handle
	if err == nil {
		h, err = n.c.s.svc.Acquire(n.c.s.ctx, name)
	}
	if err != nil {
		n.refuse(o, err)
		return
	}
	defer h.Release()
	if n.c.caller.May(auth.Map, name) {
		q := newContextQuery(m.Queries, !set)
		if set {
			n.contexts = n.agree(q, h)
			n.of = name
		} else {
			n.tell(q, h)
		}
	}
	n.answer(o, wire.RepAck, nil)
}

// agree answers with the contexts that a client sets. Of bitmaps there is room for
// the first 14.
func (n *negotiation) agree(q *contextQuery, h *service.Handle) contexts {
	var c contexts
	add := func(id int, name string) {
		c.set |= 1 << id
		n.answer(wire.OptSetMetaContext, wire.RepMetaContext, wire.AppendMetaContext(nil, uint32(id), name))
	}
	for id, name := range mapContexts {
		if q.wants(name) {
			add(id, name)
		}
	}
	for _, b := range n.bitmaps(q, h) {
		if id := contextBitmaps + len(c.bitmaps); id < contextCount {
			c.bitmaps = append(c.bitmaps, b)
			add(id, wire.DirtyBitmap+b.name)
		}
	}
	return c
}

// tell answers with the contexts that a client asks for. What goes wrong with the
// connection shows with whatever comes next.
func (n *negotiation) tell(q *contextQuery, h *service.Handle) {
	add := func(name string) {
		n.answer(wire.OptListMetaContext, wire.RepMetaContext, wire.AppendMetaContext(nil, 0, name))
	}
	for _, name := range mapContexts {
		if q.wants(name) {
			add(name)
		}
	}
	for _, b := range n.bitmaps(q, h) {
		add(wire.DirtyBitmap + b.name)
		if len(n.out) < wire.MaxOption {
			continue
		}
		if n.flush() != nil || n.allow() != nil {
			return
		}
	}
}

// bitmaps are those bitmaps of the image that a client wants: consistent ones, which
// can be read, with names that can be told.
func (n *negotiation) bitmaps(q *contextQuery, h *service.Handle) []bitmapContext {
	if !q.wantsBitmaps() {
		return nil
	}
	all, err := h.BitmapDirectory(n.c.s.ctx)
	if err != nil { // the format has none, or its directory cannot be read
		n.c.log.Debug("nbd: no bitmaps", "image", h.Name(), "error", err)
		return nil
	}
	var found []bitmapContext
	for i := range all {
		name := wire.DirtyBitmap + all[i].Name
		if !all[i].Inconsistent && all[i].Name != "" && q.wants(name) && wire.ValidString([]byte(name)) {
			found = append(found, bitmapContext{all[i].Name, all[i].Granularity})
		}
	}
	return found
}

// A contextQuery is which contexts a client asks for.
type contextQuery struct {
	all   bool
	names map[string]bool
	under []string // the namespaces of which it wants all, with their colons
}

// newContextQuery reads queries. In a listing no query means all, and one without a
// leaf all of its namespace.
func newContextQuery(queries []string, listing bool) *contextQuery {
	q := &contextQuery{all: listing && len(queries) == 0, names: make(map[string]bool, len(queries))}
	for _, text := range queries {
		q.names[text] = true
	}
	for _, space := range []string{"base:", "qemu:", wire.DirtyBitmap} {
		if listing && q.names[space] {
			q.under = append(q.under, space)
		}
	}
	return q
}

// wants reports whether the context is one of them.
func (q *contextQuery) wants(name string) bool {
	if q.all || q.names[name] {
		return true
	}
	for _, space := range q.under {
		if len(name) > len(space) && strings.HasPrefix(name, space) {
			return true
		}
	}
	return false
}

// wantsBitmaps reports whether one of a bitmap may be.
func (q *contextQuery) wantsBitmaps() bool {
	if q.all {
		return true
	}
	for name := range q.names {
		if strings.HasPrefix(name, wire.DirtyBitmap) || name == "qemu:" {
			return true
		}
	}
	return false
}
