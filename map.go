package main

import (
	"bufio"
	"context"
	"fmt"
	"iter"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/block"
)

func mapCommand() *cobra.Command {
	var f localFlags
	var remote remoteFlags
	cmd := &cobra.Command{
		Use:   "map FILE | map URL | map --config FILE NAME",
		Short: "Print where the blocks of an image are, as qemu-img map does",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			asJSON, err := f.json()
			if err != nil {
				return err
			}
			if isRemote(args[0]) {
				return f.mapRemote(cmd, &remote, args[0], asJSON)
			}
			return f.withImage(cmd, args[0], false, func(h *service.Handle) error {
				w := bufio.NewWriterSize(cmd.OutOrStdout(), 64<<10)
				var p mapPrinter = &humanMap{w: w, path: localPaths(args[0], h)}
				if asJSON {
					p = &jsonMap{w: w}
				}
				if err := printMap(localEntries(cmd.Context(), h), p); err != nil {
					return err
				}
				return w.Flush()
			})
		},
	}
	f.registerConfig(cmd)
	remote.register(cmd)
	return cmd
}

// A mapEntry is a line of the map, in qemu-img's terms. Its members stand for
// themselves in JSON.
type mapEntry struct {
	start, length int64
	depth         int16
	present       bool // a layer supplies it
	zero, data    bool
	compressed    bool
	encrypted     bool
	node          *storage.Node // nil: at no offset
	offset        int64
}

// newMapEntry translates a resolved mapping. direct tells that the layer's
// guest offsets are its file's, as in a raw image.
func newMapEntry(m *storage.Mapping, direct bool) mapEntry {
	e := mapEntry{
		start:      m.Offset,
		length:     m.Length,
		depth:      m.Depth,
		present:    m.Status.Has(storage.Local),
		zero:       m.Status.Has(storage.Zero),
		compressed: m.Flags&storage.Compressed != 0,
		encrypted:  m.Flags&storage.Encrypted != 0,
	}
	if m.Status.Has(storage.OffsetValid) {
		e.node, e.offset = m.Node, m.NodeOffset
	}
	// A cluster that the layer maps as data, in which its file has a hole, is
	// both data and zeros.
	hole := e.zero && e.node != nil && !m.Status.Has(storage.Alloc) && !direct
	e.data = e.present && !e.zero || hole
	return e
}

// joins reports whether next goes on where e ends and reads the same.
func (e *mapEntry) joins(next *mapEntry) bool {
	same := *next
	same.start, same.length, same.offset = e.start, e.length, e.offset
	return same == *e && (e.node == nil || e.offset+e.length == next.offset)
}

type mapPrinter interface {
	begin() error
	entry(e *mapEntry) error
	end() error
}

// localEntries are the whole map of an image.
func localEntries(ctx context.Context, h *service.Handle) iter.Seq2[mapEntry, error] {
	d := h.Device()
	return func(yield func(mapEntry, error) bool) {
		for m, err := range d.Walk(ctx, 0, d.Size(), block.WalkOptions{}) {
			if err != nil {
				yield(mapEntry{}, err)
				return
			}
			if !yield(newMapEntry(&m, h.LayerFormat(int(m.Depth)) == "raw"), nil) {
				return
			}
		}
	}
}

// printMap streams a map, its neighbours that read the same as one.
func printMap(entries iter.Seq2[mapEntry, error], p mapPrinter) error {
	if err := p.begin(); err != nil {
		return err
	}
	var pending mapEntry
	for e, err := range entries {
		if err != nil {
			return err
		}
		if pending.joins(&e) {
			pending.length += e.length
			continue
		}
		if pending.length > 0 {
			if err := p.entry(&pending); err != nil {
				return err
			}
		}
		pending = e
	}
	// An image without bytes has one entry of none, as with QEMU.
	if err := p.entry(&pending); err != nil {
		return err
	}
	return p.end()
}

// jsonMap prints what qemu-img map --output=json does, with the members of
// QEMU 8.2.
type jsonMap struct {
	w    *bufio.Writer
	line []byte
	any  bool
}

func (p *jsonMap) begin() error { return p.w.WriteByte('[') }

func (p *jsonMap) entry(e *mapEntry) error {
	b := p.line[:0]
	if p.any {
		b = append(b, ",\n"...)
	}
	p.any = true
	b = strconv.AppendInt(append(b, `{ "start": `...), e.start, 10)
	b = strconv.AppendInt(append(b, `, "length": `...), e.length, 10)
	b = strconv.AppendInt(append(b, `, "depth": `...), int64(e.depth), 10)
	b = strconv.AppendBool(append(b, `, "present": `...), e.present)
	b = strconv.AppendBool(append(b, `, "zero": `...), e.zero)
	b = strconv.AppendBool(append(b, `, "data": `...), e.data)
	b = strconv.AppendBool(append(b, `, "compressed": `...), e.compressed)
	if e.node != nil {
		b = strconv.AppendInt(append(b, `, "offset": `...), e.offset, 10)
	}
	p.line = append(b, '}')
	_, err := p.w.Write(p.line)
	return err
}

func (p *jsonMap) end() error {
	_, err := p.w.WriteString("]\n")
	return err
}

// humanMap prints the columns of qemu-img map: data alone. Where qemu-img gives
// up, at data that is compressed or encrypted, the column says so.
type humanMap struct {
	w    *bufio.Writer
	path func(*storage.Node) string
}

func (p *humanMap) begin() error {
	_, err := fmt.Fprintf(p.w, "%-16s%-16s%-16s%s\n", "Offset", "Length", "Mapped to", "File")
	return err
}

func (p *humanMap) entry(e *mapEntry) error {
	if !e.data || e.zero {
		return nil
	}
	at, path := "", ""
	switch {
	case e.node != nil:
		at, path = hex(e.offset), p.path(e.node)
	case e.compressed:
		at = "compressed"
	case e.encrypted:
		at = "encrypted"
	}
	_, err := fmt.Fprintf(p.w, "%-16s%-16s%-16s%s\n", hex(e.start), hex(e.length), at, path)
	return err
}

func (p *humanMap) end() error { return nil }

// hex is C's %#x.
func hex(n int64) string {
	if n == 0 {
		return "0"
	}
	return "0x" + strconv.FormatInt(n, 16)
}
