package qcow2

import (
	"context"
	"encoding/binary"
	"fmt"
)

// The header extension of bitmaps is changed without ever being seen half done. Where
// there is one, and it says otherwise only in one sector, that is one write. Else the
// autoclear bit in the header is what turns it on: while it is off the extension is
// not looked at, neither here nor by QEMU, and it is written meanwhile.

const (
	extensionHeader = 8
	sector          = sectorSize // is written wholly or not at all
)

// An extensionPlace is where the extension is in the first cluster, or can be.
type extensionPlace struct {
	at     int64 // where it begins, its type and length before the 24 bytes; or the end marker
	exists bool
	last   bool  // no other follows it
	marked bool  // the list has an end marker
	limit  int64 // nothing of the list lies from here on
}

// findExtension looks for the extension, as readExtensions does.
func (w *writer) findExtension(ctx context.Context) (p extensionPlace, err error) {
	h := &w.state.Load().header
	p.limit = h.extensionsEnd()
	b := window{source: w.src}
	at := int64(h.length)
	for at <= p.limit-extensionHeader {
		word, err := b.at(ctx, 0, at, extensionHeader)
		if err != nil {
			return p, fmt.Errorf("qcow2: header extension at %#x: %w", at, err)
		}
		kind, length := binary.BigEndian.Uint32(word), int64(binary.BigEndian.Uint32(word[4:]))
		if kind == extensionEnd {
			p.marked = true
			break
		}
		p.last = kind == extensionBitmaps
		if p.last {
			p.at, p.exists = at, true
		}
		at += extensionHeader + (length+7)&^7
	}
	if !p.exists {
		p.at = at
	}
	return p, nil
}

// switchDirectory makes the header say where the bitmap directory is, durably: that
// and what it refers to must be. The zero value says that there is none. On an error
// the header is as it was, or the image is out of service. w.mu must be held.
func (w *writer) switchDirectory(ctx context.Context, next bitmapsExtension) error {
	p, err := w.findExtension(ctx)
	if err != nil {
		return err
	}
	h := &w.state.Load().header
	on := h.autoclear&autoclearBitmaps != 0
	switch {
	case next.count == 0:
		return w.removeExtension(ctx, p)
	case p.exists && on && oneSector(p.at+extensionHeader, bitmapsLength):
		err = w.replaceBytes(ctx, p.at+extensionHeader, w.state.Load().bitmaps.encode(), next.encode())
	case p.exists:
		err = w.rewriteExtension(ctx, p, next)
	default:
		err = w.addExtension(ctx, p, next)
	}
	if err == nil {
		err = w.sync(ctx)
	}
	if err == nil {
		w.useDirectory(next)
	}
	return err
}

func oneSector(at, n int64) bool { return at/sector == (at+n-1)/sector }

// useDirectory makes it what everyone here sees.
func (w *writer) useDirectory(next bitmapsExtension) {
	s := *w.state.Load()
	s.bitmaps = next
	s.info.Bitmaps = int(next.count)
	w.apply(&s)
}

func (e *bitmapsExtension) encode() []byte {
	b := make([]byte, bitmapsLength)
	binary.BigEndian.PutUint32(b, e.count)
	binary.BigEndian.PutUint64(b[8:], uint64(e.size))
	binary.BigEndian.PutUint64(b[16:], uint64(e.offset))
	return b
}

// setAutoclear turns the extension on or off, durably.
func (w *writer) setAutoclear(ctx context.Context, on bool) error {
	err := w.writeHeaderFields(ctx, func(h *header) {
		if h.autoclear &^= autoclearBitmaps; on {
			h.autoclear |= autoclearBitmaps
		}
	})
	if err != nil {
		return err
	}
	return w.sync(ctx)
}

// rewriteExtension writes it while it is off. A crash meanwhile loses all bitmaps, as
// it does in QEMU: there are none then.
func (w *writer) rewriteExtension(ctx context.Context, p extensionPlace, next bitmapsExtension) error {
	if err := w.setAutoclear(ctx, false); err != nil {
		return err
	}
	err := w.src.write(context.WithoutCancel(ctx), next.encode(), hostOffset(p.at+extensionHeader))
	if err == nil {
		err = w.sync(ctx)
	}
	if err == nil {
		err = w.setAutoclear(ctx, true)
	}
	if err != nil { // what the header says of bitmaps is not what is known here
		return w.outOfService(err)
	}
	return nil
}

// addExtension puts it where the list ends, in the order: what follows the end marker,
// which nobody reads; the type in its place; the autoclear bit.
func (w *writer) addExtension(ctx context.Context, p extensionPlace, next bitmapsExtension) error {
	p, err := w.makeRoom(ctx, p)
	if err != nil {
		return err
	}
	after := append(next.encode(), make([]byte, extensionHeader)...) // with an end marker
	if err := w.write(ctx, after, hostOffset(p.at+extensionHeader)); err != nil {
		return fmt.Errorf("qcow2: header extension: %w", err)
	}
	if err := w.sync(ctx); err != nil {
		return err
	}
	begin := binary.BigEndian.AppendUint32(nil, extensionBitmaps)
	begin = binary.BigEndian.AppendUint32(begin, bitmapsLength)
	if err := w.replaceBytes(ctx, p.at, make([]byte, extensionHeader), begin); err != nil {
		return err
	}
	if err := w.sync(ctx); err != nil {
		return err
	}
	return w.setAutoclear(ctx, true)
}

// makeRoom moves the name of the backing out of the way, where the extension needs its
// place: the copy is durable before the header points to it.
func (w *writer) makeRoom(ctx context.Context, p extensionPlace) (extensionPlace, error) {
	const need = extensionHeader + bitmapsLength + extensionHeader
	h := w.state.Load().header
	if !p.marked || p.at&7 != 0 {
		return p, unsupported("bitmaps in a header whose extensions have no end marker at a multiple of 8")
	}
	if p.limit-p.at >= need {
		return p, nil
	}
	old := hostOffset(h.backingOffset)
	to := max(p.at+need, int64(old)+int64(h.backingLength)+7) &^ 7
	if h.backingOffset == 0 || to+int64(h.backingLength) > w.clusterSize() {
		return p, unsupported("bitmaps in a header that has no room for where they are")
	}
	name := make([]byte, h.backingLength)
	if err := w.src.read(ctx, name, old); err != nil {
		return p, fmt.Errorf("qcow2: backing file name: %w", err)
	}
	if err := w.write(ctx, name, hostOffset(to)); err != nil {
		return p, fmt.Errorf("qcow2: backing file name: %w", err)
	}
	if err := w.sync(ctx); err != nil {
		return p, err
	}
	if err := w.writeHeaderFields(ctx, func(h *header) { h.backingOffset = uint64(to) }); err != nil {
		return p, err
	}
	p.limit = to
	return p, w.sync(ctx)
}

// removeExtension turns it off, and ends the list where it was, if it was the last.
func (w *writer) removeExtension(ctx context.Context, p extensionPlace) error {
	if err := w.setAutoclear(ctx, false); err != nil {
		return err
	}
	w.useDirectory(bitmapsExtension{})
	if !p.exists || !p.last {
		return nil
	}
	err := w.write(ctx, make([]byte, extensionHeader), hostOffset(p.at))
	if err != nil && w.failure.Load() == nil { // it stays, turned off
		return nil
	}
	if err != nil {
		return fmt.Errorf("qcow2: header extension: %w", err)
	}
	return w.sync(ctx)
}
