package qcow2_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/qcow2"
	"github.com/extentd/extentd/storage/storagetest"
)

// qemuInfo is what qemu-img info says of snapshots and bitmaps.
type qemuInfo struct {
	Snapshots []struct {
		ID          string `json:"id"`
		Name        string `json:"name"`
		DateSec     int64  `json:"date-sec"`
		DateNsec    int64  `json:"date-nsec"`
		VMClockSec  int64  `json:"vm-clock-sec"`
		VMClockNsec int64  `json:"vm-clock-nsec"`
		VMStateSize int64  `json:"vm-state-size"`
		ICount      *int64 `json:"icount"`
	} `json:"snapshots"`
	FormatSpecific struct {
		Data struct {
			Bitmaps []struct {
				Name        string   `json:"name"`
				Granularity int64    `json:"granularity"`
				Flags       []string `json:"flags"`
			} `json:"bitmaps"`
		} `json:"data"`
	} `json:"format-specific"`
}

func qemuInfoOf(t testing.TB, dir, name string) qemuInfo {
	t.Helper()
	var info qemuInfo
	if err := json.Unmarshal([]byte(run(t, dir, "qemu-img", "info", "--output=json", name)), &info); err != nil {
		t.Fatal(err)
	}
	return info
}

func compareSnapshots(t *testing.T, dir string) []qcow2.Snapshot {
	t.Helper()
	i := openDisk(t, dir, image)
	got, err := i.Snapshots(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var want []qcow2.Snapshot
	for k, s := range qemuInfoOf(t, dir, image).Snapshots {
		icount := int64(-1)
		if s.ICount != nil {
			icount = *s.ICount
		}
		want = append(want, qcow2.Snapshot{
			ID: s.ID, Name: s.Name, Date: time.Unix(s.DateSec, s.DateNsec).UTC(),
			VMClock:     time.Duration(s.VMClockSec)*time.Second + time.Duration(s.VMClockNsec),
			VMStateSize: s.VMStateSize, ICount: icount,
			DiskSize: got[min(k, len(got)-1)].DiskSize, // qemu-img does not tell
		})
	}
	cut := slices.Clone(got)
	for k := range cut { // qemu-img tells no more of the strings
		cut[k].ID = cut[k].ID[:min(len(cut[k].ID), 127)]
		cut[k].Name = cut[k].Name[:min(len(cut[k].Name), 255)]
	}
	if diff := cmp.Diff(want, cut); diff != "" {
		t.Errorf("(-qemu-img +ours):\n%s", diff)
	}
	if i.Info().Snapshots != len(want) {
		t.Errorf("Info().Snapshots = %d, want %d", i.Info().Snapshots, len(want))
	}
	return got
}

// TestSnapshots compares with qemu-img info, and so does a table that was
// written by hand.
func TestSnapshots(t *testing.T) {
	for _, options := range []string{"", "compat=0.10", "cluster_size=512"} {
		dir := t.TempDir()
		create(t, dir, image, 2*mib, options)
		for k, name := range []string{"first", "with a much longer name", "äöü/..", "x"} {
			run(t, dir, "qemu-img", "snapshot", "-c", name, image)
			qemuIO(t, dir, image, fmt.Sprintf("write -P 1 %d 64k", k*65536))
		}
		run(t, dir, "qemu-img", "snapshot", "-d", "first", image)
		if options != "compat=0.10" { // QEMU resizes no version 2 image that has snapshots
			run(t, dir, "qemu-img", "resize", "-q", image, "3M")
		}
		for _, s := range compareSnapshots(t, dir) {
			if s.DiskSize != 2*mib {
				t.Errorf("%q: DiskSize = %d, want %d", s.Name, s.DiskSize, 2*mib)
			}
		}
	}
}

// A snapshotEntry is an entry of a hand-written snapshot table.
type snapshotEntry struct {
	id, name    string
	sec, nsec   uint32
	clock       uint64
	state       uint32
	extra       []byte
	extraLength uint32 // 0: that of extra
}

func (s *snapshotEntry) bytes() []byte {
	length := s.extraLength
	if length == 0 {
		length = uint32(len(s.extra))
	}
	b := bytes.Join([][]byte{
		be64(0x30000), be32(1), be32(uint32(len(s.id))<<16 | uint32(len(s.name))),
		be32(s.sec), be32(s.nsec), be64(s.clock), be32(s.state), be32(length),
		s.extra, []byte(s.id), []byte(s.name),
	}, nil)
	return append(b, make([]byte, -len(b)&7)...)
}

// withSnapshots is an image with a snapshot table at 4 MiB.
func withSnapshots(count uint32, entries ...snapshotEntry) []byte {
	var table []byte
	for _, e := range entries {
		table = append(table, e.bytes()...)
	}
	return patched((&builder{size: 1 << 20}).bytes(), patch{60, append(be32(count), be64(tableAt)...)}, patch{tableAt, table})
}

func TestSnapshotTable(t *testing.T) {
	long := strings.Repeat("n", 65535)
	for _, tt := range []struct {
		name    string
		content []byte
		err     string
	}{
		{"extra data", withSnapshots(5,
			snapshotEntry{id: "1", name: "none", sec: 1700000000, nsec: 123456789, clock: 5e9, state: 77},
			snapshotEntry{id: "2", name: "state", state: 77, extra: be64(1 << 40)},
			snapshotEntry{id: "3", name: "size", extra: append(be64(0), be64(12345)...)},
			snapshotEntry{id: "4", name: "icount", extra: bytes.Join([][]byte{be64(0), be64(1), be64(4711)}, nil)},
			snapshotEntry{id: "5", name: "unknown", extra: append(bytes.Join([][]byte{be64(0), be64(1), be64(math.MaxUint64)}, nil), make([]byte, 1000)...)},
		), ""},
		{"strings", withSnapshots(4,
			snapshotEntry{}, snapshotEntry{id: "same", name: "same"}, snapshotEntry{id: "same", name: "cut\x00here"}, snapshotEntry{id: "1", name: long},
		), ""},
		{"too much extra data", withSnapshots(1, snapshotEntry{extraLength: 1025}), "entry 0 has 1025 bytes of extra data, may be 1024 at most"},
		{"extra data max", withSnapshots(1, snapshotEntry{extraLength: 1<<32 - 1}), "extra data"},
		{"too large", bigSnapshotTable(600, 65535), "snapshot table: entry 511 ends at 671"},
		{"large", bigSnapshotTable(500, 65535), ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, image), tt.content, 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := openBytes(t, tt.content)
			if tt.err != "" {
				if !errors.Is(err, storage.ErrCorrupt) || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("Open: %v, want it to say %q", err, tt.err)
				}
				if out, err := try(t, dir, "qemu-img", "info", image); err == nil {
					t.Errorf("qemu-img opens it:\n%s", out)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if tt.name == "extra data" {
				got := compareSnapshots(t, dir)
				for k, want := range []int64{1 << 20, 1 << 20, 12345, 1, 1} {
					if got[k].DiskSize != want {
						t.Errorf("%q: DiskSize = %d, want %d", got[k].Name, got[k].DiskSize, want)
					}
				}
				return
			}
			compareSnapshots(t, dir)
		})
	}
}

// bigSnapshotTable has entries with two strings of so many bytes.
func bigSnapshotTable(count uint32, length int) []byte {
	entries := make([]snapshotEntry, count)
	for k := range entries {
		entries[k] = snapshotEntry{id: strings.Repeat("i", length), name: strings.Repeat("n", length)}
	}
	return withSnapshots(count, entries...)
}

// TestHostileDirectories opens images with the largest tables there may be, and
// measures that next to nothing of them is kept.
func TestHostileDirectories(t *testing.T) {
	const count = 65535
	entry := (&snapshotEntry{id: strings.Repeat("i", 400), name: strings.Repeat("n", 500)}).bytes()
	snapshots := patched((&builder{size: 1 << 20}).bytes(), patch{60, append(be32(count), be64(tableAt)...)}, patch{tableAt, bytes.Repeat(entry, count)})
	var directory []byte
	for k := range count {
		e := bitmapEntry{name: fmt.Sprintf("%0900d", k)}
		directory = append(directory, e.bytes()...)
	}
	bitmaps := withDirectory(count, uint64(len(directory)), directory)
	for name, content := range map[string][]byte{"snapshots": snapshots, "bitmaps": bitmaps} {
		t.Run(name, func(t *testing.T) {
			node := storage.NewNode("image", sliceFile{storagetest.NewMemFile(nil), content}, storage.NodeOptions{})
			var before, after, kept runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			i, err := qcow2.Open(t.Context(), node, qcow2.Options{})
			runtime.ReadMemStats(&after)
			if err != nil {
				t.Fatal(err)
			}
			defer i.Close()
			runtime.GC()
			runtime.ReadMemStats(&kept)
			if n := after.TotalAlloc - before.TotalAlloc; n > 24<<20 {
				t.Errorf("allocated %d bytes", n)
			}
			if kept.HeapAlloc > before.HeapAlloc+1<<20 {
				t.Errorf("keeps %d bytes", kept.HeapAlloc-before.HeapAlloc)
			}
		})
	}
}

// A sliceFile reads from a slice.
type sliceFile struct {
	*storagetest.MemFile
	content []byte
}

func (f sliceFile) Size(context.Context) (int64, error) { return int64(len(f.content)), nil }

func (f sliceFile) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	return bytes.NewReader(f.content).ReadAt(p, off)
}
