package main

import (
	"bufio"
	"context"
	"errors"
	"iter"

	"github.com/spf13/cobra"

	"github.com/extentd/extentd/client"
	"github.com/extentd/extentd/storage"
)

// remoteOnly refuses flags that are for files, where a URL is given.
func (f *localFlags) remoteOnly() error {
	if f.format != "" || f.config != "" || len(f.backingDirs) > 0 {
		return errors.New("format, config and backing-dir are for files: a server knows what its images are")
	}
	return nil
}

// mapRemote prints the map of an image of a server as that of a file.
func (f *localFlags) mapRemote(cmd *cobra.Command, remote *remoteFlags, arg string, asJSON bool) error {
	if err := f.remoteOnly(); err != nil {
		return err
	}
	return remote.withRemote(arg, func(_ remoteURL, disk *client.Disk) error {
		image, err := disk.Describe(cmd.Context())
		if err != nil {
			return err
		}
		w := bufio.NewWriterSize(cmd.OutOrStdout(), 64<<10)
		var p mapPrinter = &humanMap{w: w, path: (*storage.Node).Name}
		if asJSON {
			p = &jsonMap{w: w}
		}
		if err := printMap(remoteEntries(cmd.Context(), disk, image), p); err != nil {
			return err
		}
		return w.Flush()
	})
}

// remoteEntries are the whole map of an image of a server.
func remoteEntries(ctx context.Context, disk *client.Disk, image *client.Image) iter.Seq2[mapEntry, error] {
	nodes := make(map[string]*storage.Node)
	return func(yield func(mapEntry, error) bool) {
		for e, err := range disk.Extents(ctx, client.ExtentsOptions{}) {
			if err != nil {
				yield(mapEntry{}, err)
				return
			}
			m, err := remoteMapping(&e, nodes)
			if err != nil {
				yield(mapEntry{}, err)
				return
			}
			direct := e.Depth < len(image.Layers) && image.Layers[e.Depth].Format == "raw"
			if !yield(newMapEntry(&m, direct), nil) {
				return
			}
		}
	}
}

// maxNodes is more than any chain has.
const maxNodes = 1024

// remoteMapping is an extent as the local verbs know it. Its node has a name and
// nothing else.
func remoteMapping(e *client.Extent, nodes map[string]*storage.Node) (storage.Mapping, error) {
	m := storage.Mapping{Offset: e.Offset, Length: e.Length, Depth: int16(min(e.Depth, 1<<14))}
	for status, is := range map[storage.Status]bool{
		storage.Local: e.Local, storage.Zero: e.Zero, storage.Alloc: e.Alloc, storage.OffsetValid: e.OffsetValid,
	} {
		if is {
			m.Status |= status
		}
	}
	if e.Compressed != nil && *e.Compressed {
		m.Flags |= storage.Compressed
	}
	if e.Encrypted != nil && *e.Encrypted {
		m.Flags |= storage.Encrypted
	}
	if e.Node == nil || e.NodeOffset == nil {
		return m, nil
	}
	node := nodes[*e.Node]
	if node == nil {
		if len(nodes) == maxNodes {
			return m, errors.New("the map names more nodes than an image has")
		}
		node = storage.NewNode(*e.Node, nil, storage.NodeOptions{})
		nodes[*e.Node] = node
	}
	m.Node, m.NodeOffset = node, *e.NodeOffset
	return m, nil
}
