package service

import (
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"strconv"
	"strings"

	"github.com/extentd/extentd/storage/file"
)

// A baseState says which bytes a base had when it was in use, as far as that can
// be told. Comparable.
type baseState struct {
	identity file.Identity
	epoch    string // where the identity does not tell; else ""
	writes   uint64 // since epoch
	valid    string // what the validator said
}

// state is that of a base whose file is the one with the identity. A graph that
// holds bytes of its own, or of which nobody can tell what it reads as, has an
// epoch from when it was opened. The identity of a block device does not tell
// that it was written to, so its state holds until we have written to one, and
// not across restarts.
func (s *Service) state(b *base, id file.Identity) baseState {
	st := baseState{identity: id}
	g := b.shared.graph
	if g != nil {
		st.valid = g.valid
	}
	switch {
	case g != nil && g.random:
		st.epoch, st.writes = g.epoch, g.writes.Load()
	case id.Device:
		st.epoch, st.writes = s.epoch, s.deviceWrites.Load()
	}
	return st
}

// A digest collects what a generation is derived from.
type digest struct{ field []byte }

func (d *digest) text(s string) {
	d.field = binary.LittleEndian.AppendUint64(d.field, uint64(len(s)))
	d.field = append(d.field, s...)
}

// generations derives the two generations of an image that is not written
// here: from the format, the configuration, and the identity of every file, so
// that they hold across restarts. That of the file system is left out: it may
// change with a reboot.
func (c *chain) generations() (mapping, data string) {
	sum := sha256.New()
	d := digest{field: make([]byte, 0, 64)}
	for _, b := range c.bases {
		d.field = d.field[:0]
		d.base(b.format, &b.identity)
		st := c.s.state(b, b.identity)
		if b.graph != nil || st.epoch != "" {
			d.graph(b.graph, &st)
		}
		sum.Write(d.field)
	}
	text := encodeSum(sum.Sum(nil))
	return "m-" + text, "d-" + text
}

// snapshotGenerations derives those of a snapshot from what it is, and from what
// it stands on: they never change while that does not, and hold across restarts. Of
// a file that the image writes to, only which one it is counts.
func (i *image) snapshotGenerations(m SnapshotMapper) (mapping, data string) {
	sum := sha256.New()
	d := digest{field: make([]byte, 0, 256)}
	d.text("snapshot")
	d.text(m.Identity())
	for _, b := range i.chain.bases {
		id := b.identity
		if i.writes(b) {
			id.Size, id.Mtime, id.Ctime = 0, 0, 0
		}
		d.base(b.format, &id)
		st := i.s.state(b, id)
		if i.writes(b) {
			st.writes = 0
			if b.identity.Device {
				st.epoch = ""
			}
		}
		if b.graph != nil || st.epoch != "" {
			d.graph(b.graph, &st)
		}
	}
	sum.Write(d.field)
	text := encodeSum(sum.Sum(nil))
	return "m-" + text, "d-" + text
}

func encodeSum(sum []byte) string {
	return strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:15]))
}

// base adds which file a base is.
func (d *digest) base(format string, id *file.Identity) {
	d.field = append(d.field, byte(len(format)))
	d.field = append(d.field, format...)
	ino := id.Ino
	if id.Device {
		ino = id.Dev
	}
	for _, v := range []uint64{ino, uint64(id.Size), uint64(id.Mtime), uint64(id.Ctime)} {
		d.field = binary.LittleEndian.AppendUint64(d.field, v)
	}
}

// graph adds what a graph is made of, and what is known of its state.
func (d *digest) graph(g *Graph, st *baseState) {
	d.field = append(d.field, 0xff) // no format's name is as long
	d.text(st.epoch)
	d.text(strconv.FormatUint(st.writes, 36))
	d.text(st.valid)
	if g == nil {
		return
	}
	d.text(strconv.Itoa(len(g.Filters)))
	d.text(g.Node.Kind)
	d.text(g.Node.Options)
	for i := range g.Filters {
		d.text(g.Filters[i].Kind)
		d.text(g.Filters[i].Options)
	}
}
