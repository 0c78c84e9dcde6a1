package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/extentd/extentd/client"
	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage"
)

// infoRemote describes an image of a server as a file.
func (f *localFlags) infoRemote(cmd *cobra.Command, remote *remoteFlags, arg string, asJSON bool) error {
	if err := f.remoteOnly(); err != nil {
		return err
	}
	return remote.withRemote(arg, func(r remoteURL, disk *client.Disk) error {
		image, err := disk.Describe(cmd.Context())
		if err != nil {
			return err
		}
		info, err := remoteInfo(image)
		if err != nil {
			return err
		}
		out := newImageInfo(r.String(), &info)
		out.FullBacking = "" // it is the server's to say where that leads
		return out.show(cmd.OutOrStdout(), asJSON)
	})
}

// remoteInfo is what the server says, as the local verbs know it.
func remoteInfo(image *client.Image) (service.Info, error) {
	info := service.Info{Name: image.Name, Format: image.Format, Size: image.Size, Allocated: image.Allocated, ReadOnly: image.ReadOnly}
	if len(image.Layers) == 0 {
		return info, fmt.Errorf("image %s has no layers", image.Name)
	}
	top := &image.Layers[0]
	info.Layers = []service.LayerInfo{{
		Format:        top.Format,
		Size:          top.Size,
		Allocated:     image.Allocated,
		ClusterSize:   valueOf(top.ClusterSize),
		BackingFile:   valueOf(top.BackingFile),
		BackingFormat: valueOf(top.BackingFormat),
	}}
	q := image.Qcow2
	if q == nil {
		return info, nil
	}
	info.QCOW2 = &service.QCOW2{
		Version: q.Version, ClusterSize: q.ClusterSize, RefcountBits: q.RefcountBits, CompressionType: q.CompressionType,
		ExtendedL2: q.ExtendedL2, LazyRefcounts: q.LazyRefcounts, Dirty: q.Dirty, Corrupt: q.Corrupt,
		DataFile: valueOf(q.DataFile), DataFileRaw: q.DataFileRaw, Encryption: valueOf(q.Encryption),
	}
	for _, s := range q.Snapshots {
		clock, err := time.ParseDuration(s.VmClock)
		if err != nil {
			return info, fmt.Errorf("snapshot %s: its clock is %q", s.Id, s.VmClock)
		}
		icount := int64(-1)
		if s.Icount != nil {
			icount = *s.Icount
		}
		info.QCOW2.Snapshots = append(info.QCOW2.Snapshots, service.Snapshot{
			ID: s.Id, Name: s.Name, Created: s.Created, Size: s.Size, VMStateSize: s.VmStateSize, VMClock: clock, ICount: icount,
		})
	}
	for _, b := range q.Bitmaps {
		bitmap := storage.BitmapInfo{Name: b.Name, Granularity: b.Granularity, Enabled: b.Enabled, Inconsistent: b.Inconsistent || b.InUse, Dirty: -1} // older servers say in_use alone
		if b.Dirty != nil {
			bitmap.Dirty = *b.Dirty
		}
		info.QCOW2.Bitmaps = append(info.QCOW2.Bitmaps, bitmap)
	}
	return info, nil
}

func valueOf[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}
