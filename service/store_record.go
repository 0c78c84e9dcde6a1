package service

import (
	"fmt"
	"math"
	"os"
	"strings"
	"time"

	"github.com/extentd/extentd/storage"
)

// A storedKey is a fileKey as the store keeps it.
type storedKey struct {
	Dev    uint64 `json:"dev"`
	Ino    uint64 `json:"ino"`
	Device bool   `json:"device,omitempty"`
	Graph  string `json:"graph,omitempty"`
}

func storeKey(k fileKey) storedKey {
	return storedKey{Dev: k.dev, Ino: k.ino, Device: k.device, Graph: k.graph}
}

func (k storedKey) key() fileKey {
	return fileKey{dev: k.Dev, ino: k.Ino, device: k.Device, graph: k.Graph}
}

func (k storedKey) String() string {
	text := fmt.Sprintf("%x-%x-%t", k.Dev, k.Ino, k.Device)
	if k.Graph != "" {
		text += "-" + k.Graph
	}
	return text
}

// A record is an allocation as the store keeps it. All but Expires, Spent and
// Doomed stays as it was written first.
type record struct {
	ID         string    `json:"id"`
	Image      string    `json:"image"`
	File       storedKey `json:"file"`
	Boot       string    `json:"boot"` // of the machine when it was written
	Created    time.Time `json:"created"`
	Expires    time.Time `json:"expires"`
	Contiguous bool      `json:"contiguous"`
	Length     int64     `json:"length"`
	Extents    []extent  `json:"extents"`
	// Guest is where the image has the blocks of a claim; nil for others.
	Guest *int64 `json:"guest,omitempty"`
	// Spent is what is mapped or may be: it is written before the mapping is
	// changed, so that after a crash nothing is mapped a second time.
	Spent spans `json:"spent,omitempty"`
	// Doomed: what is left of it is to be given back, and nothing else.
	Doomed bool `json:"doomed,omitempty"`
}

// An extent is where a part of an allocation is, bytes. The parts of one record
// follow each other without a gap.
type extent struct {
	Offset     int64 `json:"offset"` // in the allocation
	Length     int64 `json:"length"`
	NodeOffset int64 `json:"node_offset"`
}

// check refuses a record that no allocation can have written.
func (r *record) check() error {
	bad := func(what string) error { return fmt.Errorf("allocation %q: %s makes no sense", r.ID, what) }
	if !ValidName(r.Image) || r.Length <= 0 || r.Length > storage.MaxSize || len(r.Extents) > maxExtents {
		return bad("the image, the length, or the number of extents")
	}
	at := int64(0)
	for _, e := range r.Extents {
		if e.Offset != at || e.Length <= 0 || e.Length > r.Length-at || e.NodeOffset < 0 || e.NodeOffset > math.MaxInt64-e.Length {
			return bad("an extent")
		}
		at += e.Length
	}
	if at != r.Length {
		return bad("the sum of the extents")
	}
	if r.Guest != nil && (*r.Guest < 0 || *r.Guest > storage.MaxSize) {
		return bad("the claimed offset")
	}
	end := int64(-1)
	for _, o := range r.Spent {
		if o.Offset <= end || o.Length <= 0 || o.Length > r.Length || o.Offset > r.Length-o.Length {
			return bad("a mapped part")
		}
		end = o.end()
	}
	return nil
}

// pieces are where a part of the allocation is: each goes on where the one before
// ends.
func (r *record) pieces(part span) []extent {
	var out []extent
	for _, e := range r.Extents {
		lo, hi := max(e.Offset, part.Offset), min(e.Offset+e.Length, part.end())
		if lo < hi {
			out = append(out, extent{Offset: lo, Length: hi - lo, NodeOffset: e.NodeOffset + lo - e.Offset})
		}
	}
	return out
}

// bootID tells one run of the machine from another, "" where that is not known.
// What was written and not synced before is certain to be there only within one.
func bootID() string {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}
