package qcow2

import (
	"cmp"
	"context"
	"encoding/binary"
	"slices"
	"sync/atomic"
)

// A member is a bitmap of the directory, as it is or is to be.
type member struct {
	name  string
	at    int64 // of its entry, in the directory that was read
	entry bitmapEntry
	live  *live   // that records in it, nil for none
	bits  *bitset // what it is to contain; nil: what it does
	store bool    // bits are to be written, or what live has
}

// inconsistent reports whether its content is lost.
func (m *member) inconsistent() bool { return m.entry.flags&bitmapInUse != 0 && m.live == nil }

func (m *member) enabled() bool { return m.entry.flags&bitmapAuto != 0 }

// readDirectory is all bitmaps. w.mu must be held.
func (w *writer) readDirectory(ctx context.Context) ([]*member, error) {
	var list []*member
	r := w.recording.Load()
	err := w.walkBitmaps(ctx, &window{source: w.src}, func(at int64, e *bitmapEntry, name []byte) {
		m := &member{name: string(name), at: at, entry: *e}
		if l := r.find(m.name); l != nil && l.at == at {
			m.live = l
		}
		list = append(list, m)
	})
	return list, err
}

// A storing is a bitmap directory on its way to replace the one that there is.
type storing struct {
	*writer
	list  []*member
	taken []run // clusters that only the new one refers to
	drop  []run // clusters that only the old one refers to
}

// replaceDirectory makes list the directory: with all that it refers to it is
// durable before the header points to it, in one write where the header lets that be.
// gone are entries that it lacks; also, unless it is nil, is called before that write,
// and keeps it from being done if it fails. On an error the old one is still there, unless the
// image is out of service. Nothing may be dirty. w.commit and w.mu must be held.
func (w *writer) replaceDirectory(ctx context.Context, list []*member, gone []bitmapEntry, also func(context.Context) error) error {
	s := &storing{writer: w, list: list}
	old := w.state.Load().bitmaps
	for k := range gone {
		if err := s.doom(ctx, &gone[k]); err != nil {
			return err
		}
	}
	next, err := s.write(ctx)
	if err == nil {
		err = w.writeBack(ctx) // the refcounts, and a sync
	}
	if err == nil && also != nil {
		err = also(ctx)
	}
	if err == nil {
		err = w.switchDirectory(ctx, next)
	}
	if err != nil {
		for _, r := range s.taken {
			err = w.dropping(ctx, err, hostOffset(r.start<<w.clusterBits), r.count, metaBitmaps)
		}
		return err
	}
	w.bitmapsMoved.Add(1)
	w.recording.Store(s.recording())
	if old.count > 0 {
		first := int64(old.offset) >> w.clusterBits
		s.drop = append(s.drop, run{first, ceilDiv(old.size, w.clusterSize())})
	}
	ctx = context.WithoutCancel(ctx) // it is done, and this is left to tidy up
	if err = s.freeDropped(ctx); err == nil {
		err = w.writeBack(ctx)
	}
	if w.failure.Load() == nil { // at worst clusters have leaked
		return nil
	}
	return err
}

// recording is what records in the new directory.
func (s *storing) recording() *recording {
	var list []*live
	for _, m := range s.list {
		b := m.bits
		if b == nil && m.live != nil {
			b = m.live.bitset
		}
		if m.enabled() && b != nil {
			list = append(list, &live{bitset: b, name: m.name, at: m.at, marked: m.entry.flags&bitmapInUse != 0})
		}
	}
	return newRecording(list)
}

// write writes what is to be stored, and the directory, to new clusters.
func (s *storing) write(ctx context.Context) (bitmapsExtension, error) {
	for _, m := range s.list {
		if !m.store {
			continue
		}
		if m.entry.tableSize > 0 {
			if err := s.doom(ctx, &m.entry); err != nil {
				return bitmapsExtension{}, err
			}
		}
		b := m.bits
		if b == nil {
			b = m.live.bitset
		}
		if err := s.writeBitmap(ctx, m, b); err != nil {
			return bitmapsExtension{}, err
		}
		m.entry.flags &^= bitmapInUse
	}
	if len(s.list) == 0 {
		return bitmapsExtension{}, nil
	}
	var directory []byte
	for _, m := range s.list {
		m.at = int64(len(directory))
		directory = append(directory, m.encode()...)
	}
	at, err := s.writeTable(ctx, directory)
	return bitmapsExtension{count: uint32(len(s.list)), offset: at, size: int64(len(directory))}, err
}

// encode is the entry in the directory.
func (m *member) encode() []byte {
	be, e := binary.BigEndian, &m.entry
	b := make([]byte, e.length())
	be.PutUint64(b, e.tableOffset)
	be.PutUint32(b[8:], e.tableSize)
	be.PutUint32(b[12:], e.flags)
	b[16], b[17] = e.kind, e.granularity
	be.PutUint16(b[18:], e.nameLength)
	copy(b[bitmapHeader:], m.name)
	return b
}

// writeBitmap writes bits and their table to new clusters. Clusters of bits that are
// all alike are not needed.
func (s *storing) writeBitmap(ctx context.Context, m *member, b *bitset) error {
	perCluster := s.clusterSize() / 8 // words
	n := ceilDiv(int64(len(b.words)), perCluster)
	table := make([]uint64, n)
	most := max(int64(maxWrite)>>s.clusterBits, 1)
	for k := int64(0); k < n; {
		end := k
		for end < n && end-k < most && !b.alike(end*perCluster, perCluster, &table[end]) {
			end++
		}
		if end == k {
			k++
			continue
		}
		r, err := s.take(ctx, end-k, false)
		if err != nil {
			return err
		}
		s.took(r)
		buf := make([]byte, r.count<<s.clusterBits)
		b.encode(k*perCluster, buf)
		if err := s.writer.write(ctx, buf, hostOffset(r.start<<s.clusterBits)); err != nil {
			return err
		}
		for j := range r.count {
			table[k+j] = uint64((r.start + j) << s.clusterBits)
		}
		k += r.count
	}
	at, err := s.writeTable(ctx, encodeEntries(table))
	m.entry.tableOffset, m.entry.tableSize = uint64(at), uint32(n)
	return err
}

// alike reports whether so many words are all 0 or all 1, and what the table says
// then.
func (b *bitset) alike(first, count int64, entry *uint64) bool {
	whole := int64(len(b.words)) >= first+count
	words := b.words[first:min(first+count, int64(len(b.words)))]
	want := atomic.LoadUint64(&words[0])
	if want != 0 && (want != ^uint64(0) || !whole) {
		return false
	}
	for k := range words {
		if atomic.LoadUint64(&words[k]) != want {
			return false
		}
	}
	*entry = want & bitmapAllOnes
	return true
}

// writeTable writes a table to new clusters in one run.
func (s *storing) writeTable(ctx context.Context, table []byte) (hostOffset, error) {
	clusters := ceilDiv(int64(len(table)), s.clusterSize())
	at, err := s.allocMetadata(ctx, clusters, metaBitmaps)
	if err != nil {
		return 0, err
	}
	s.taken = append(s.taken, run{int64(at) >> s.clusterBits, clusters})
	table = append(table, make([]byte, clusters<<s.clusterBits-int64(len(table)))...)
	for done := 0; done < len(table); done += maxWrite {
		part := table[done:min(done+maxWrite, len(table))]
		if err := s.writer.write(ctx, part, at+hostOffset(done)); err != nil {
			return 0, err
		}
	}
	return at, nil
}

func (s *storing) took(r run) {
	s.metadata.add(r, metaBitmaps)
	s.taken = append(s.taken, r)
}

// doom notes what is free once nothing refers to an entry's table. What cannot be
// clusters of a bitmap is left alone: a check will find that it has leaked.
func (s *storing) doom(ctx context.Context, e *bitmapEntry) error {
	add := func(at uint64, bytes int64) {
		r := run{int64(at >> s.clusterBits), ceilDiv(bytes, s.clusterSize())}
		if at <= hostEnd && s.overlapError(int64(at), bytes, metaBitmaps) == nil {
			s.drop = append(s.drop, r)
		}
	}
	if s.inFile(ctx, e.tableOffset, int64(e.tableSize)*8) != nil {
		return nil
	}
	add(e.tableOffset, int64(e.tableSize)*8)
	w := window{source: s.src}
	for k := range int64(e.tableSize) {
		b, err := w.at(ctx, hostOffset(e.tableOffset), k*8, 8)
		if err != nil {
			return err
		}
		entry := binary.BigEndian.Uint64(b)
		if at := entry & bitmapOffsetMask; at != 0 && !s.badTableEntry(entry) {
			add(at, s.clusterSize())
		}
	}
	return nil
}

// freeDropped gives back what nothing refers to anymore, each cluster once, whatever
// the tables said.
func (s *storing) freeDropped(ctx context.Context) error {
	slices.SortFunc(s.drop, func(a, b run) int { return cmp.Compare(a.start, b.start) })
	var end int64
	for _, r := range s.drop {
		for ; r.count > 0; r = (run{r.start + 1, r.count - 1}) {
			if r.start < end {
				continue
			}
			end = r.start + 1
			n, err := s.refcountOf(ctx, r.start)
			if err != nil {
				return err
			}
			if n > 0 {
				s.free(run{r.start, 1}, metaBitmaps)
			}
		}
	}
	return nil
}
