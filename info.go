package main

import (
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/extentd/extentd/service"
)

func infoCommand() *cobra.Command {
	var f localFlags
	var remote remoteFlags
	cmd := &cobra.Command{
		Use:   "info FILE | info URL | info --config FILE NAME",
		Short: "Describe an image, as qemu-img info does",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			asJSON, err := f.json()
			if err != nil {
				return err
			}
			if isRemote(args[0]) {
				return f.infoRemote(cmd, &remote, args[0], asJSON)
			}
			return f.withImage(cmd, args[0], true, func(h *service.Handle) error {
				info, err := h.Info(cmd.Context())
				if err != nil {
					return err
				}
				out := newImageInfo(args[0], &info)
				if f.config != "" {
					out.Graph = newGraphInfo(info.Layers[0].Graph)
				}
				return out.show(cmd.OutOrStdout(), asJSON)
			})
		},
	}
	f.registerConfig(cmd)
	remote.register(cmd)
	return cmd
}

// show prints for people, or as JSON.
func (i *imageInfo) show(w io.Writer, asJSON bool) error {
	if !asJSON {
		return i.print(w)
	}
	text, err := json.MarshalIndent(i, "", "    ")
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "%s\n", text)
	return err
}

// imageInfo has the members of QEMU's ImageInfo, in its order.
type imageInfo struct {
	BackingFormat string          `json:"backing-filename-format,omitempty"`
	Snapshots     []snapshotInfo  `json:"snapshots,omitempty"`
	VirtualSize   int64           `json:"virtual-size"`
	Filename      string          `json:"filename"`
	ClusterSize   int64           `json:"cluster-size,omitempty"`
	Format        string          `json:"format"`
	ActualSize    int64           `json:"actual-size"`
	Encrypted     bool            `json:"encrypted,omitempty"`
	Specific      *formatSpecific `json:"format-specific,omitempty"`
	FullBacking   string          `json:"full-backing-filename,omitempty"`
	Backing       string          `json:"backing-filename,omitempty"`
	Dirty         bool            `json:"dirty-flag"`
	Graph         []nodeInfo      `json:"graph,omitempty"` // QEMU has no such member
}

// snapshotInfo has those of SnapshotInfo.
type snapshotInfo struct {
	ICount      *int64 `json:"icount,omitempty"`
	VMClockNsec int64  `json:"vm-clock-nsec"`
	Name        string `json:"name"`
	DateSec     int64  `json:"date-sec"`
	DateNsec    int    `json:"date-nsec"`
	VMClockSec  int64  `json:"vm-clock-sec"`
	ID          string `json:"id"`
	VMStateSize int64  `json:"vm-state-size"`
}

type formatSpecific struct {
	Type string        `json:"type"`
	Data qcow2Specific `json:"data"`
}

// qcow2Specific has those of ImageInfoSpecificQCow2. Pointers are nil for what
// version 2 does not have.
type qcow2Specific struct {
	Compat          string       `json:"compat"`
	CompressionType string       `json:"compression-type"`
	LazyRefcounts   *bool        `json:"lazy-refcounts,omitempty"`
	Bitmaps         []bitmapInfo `json:"bitmaps,omitempty"`
	RefcountBits    int          `json:"refcount-bits"`
	DataFile        string       `json:"data-file,omitempty"`
	DataFileRaw     *bool        `json:"data-file-raw,omitempty"`
	Corrupt         *bool        `json:"corrupt,omitempty"`
	ExtendedL2      *bool        `json:"extended-l2,omitempty"`
	Encrypt         *encryptInfo `json:"encrypt,omitempty"`
}

type bitmapInfo struct {
	Flags       []string `json:"flags"`
	Name        string   `json:"name"`
	Granularity int64    `json:"granularity"`
}

type encryptInfo struct {
	Format string `json:"format"`
}

// newImageInfo translates what the service says of the top layer.
func newImageInfo(path string, info *service.Info) *imageInfo {
	top := &info.Layers[0]
	out := &imageInfo{
		BackingFormat: top.BackingFormat,
		VirtualSize:   info.Size,
		Filename:      path,
		ClusterSize:   top.ClusterSize,
		Format:        info.Format,
		ActualSize:    top.Allocated, // without the external data file, as with QEMU
		Backing:       top.BackingFile,
		FullBacking:   fullName(path, top.BackingFile),
	}
	q := info.QCOW2
	if q == nil {
		return out
	}
	out.Dirty = q.Dirty
	out.Encrypted = q.Encryption != ""
	for i := range q.Snapshots {
		out.Snapshots = append(out.Snapshots, newSnapshotInfo(&q.Snapshots[i]))
	}
	out.Specific = &formatSpecific{Type: info.Format, Data: newQcow2Specific(q)}
	return out
}

// fullName is where a name stored in the image at path leads.
func fullName(path, name string) string {
	if name == "" || filepath.IsAbs(name) {
		return name
	}
	return path[:len(path)-len(filepath.Base(path))] + name
}

func newSnapshotInfo(s *service.Snapshot) snapshotInfo {
	out := snapshotInfo{
		VMClockSec:  int64(s.VMClock / 1e9),
		VMClockNsec: int64(s.VMClock % 1e9),
		Name:        s.Name,
		DateSec:     s.Created.Unix(),
		DateNsec:    s.Created.Nanosecond(),
		ID:          s.ID,
		VMStateSize: s.VMStateSize,
	}
	if s.ICount >= 0 {
		out.ICount = &s.ICount
	}
	return out
}

func newQcow2Specific(q *service.QCOW2) qcow2Specific {
	out := qcow2Specific{Compat: "0.10", CompressionType: q.CompressionType, RefcountBits: q.RefcountBits}
	if q.Encryption != "" {
		out.Encrypt = &encryptInfo{Format: q.Encryption}
	}
	if q.Version < 3 {
		return out
	}
	out.Compat = "1.1"
	out.LazyRefcounts, out.Corrupt, out.ExtendedL2 = &q.LazyRefcounts, &q.Corrupt, &q.ExtendedL2
	if q.DataFile != "" {
		out.DataFile, out.DataFileRaw = q.DataFile, &q.DataFileRaw
	}
	for _, b := range q.Bitmaps {
		info := bitmapInfo{Flags: []string{}, Name: b.Name, Granularity: b.Granularity}
		if b.Inconsistent {
			info.Flags = append(info.Flags, "in-use")
		}
		if b.Enabled {
			info.Flags = append(info.Flags, "auto")
		}
		out.Bitmaps = append(out.Bitmaps, info)
	}
	return out
}
