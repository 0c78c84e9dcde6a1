package service_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage"
)

// Many use images that share files and graphs. In the end each block is what one
// of them wrote to it, and all is closed.
func TestGraphCrowd(t *testing.T) {
	const block, blocks = 4096, 4
	dir := t.TempDir()
	disk := filepath.Join(dir, "disk.raw")
	write(t, disk, bytes.Repeat([]byte{1}, 2*blocks*block))
	qemu(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "top.qcow2", "32k")
	d := &diary{}
	names := []string{"disk.raw", "low", "high", "direct", "over", "mem", "top"}
	svc := start(t, service.Options{Dir: dir, Idle: 4 * time.Millisecond, Blocksize: unaligned, Images: []service.ImageSpec{
		{Name: "low", Graph: on(disk, window(0, blocks*block), d.pass("p"))},
		{Name: "high", Graph: on(disk, window(blocks*block, blocks*block))},
		{Name: "direct", Graph: direct(disk, d.pass("p"))},
		{Name: "over", Graph: on(disk, overlaid())},
		{Name: "mem", Format: "raw", Graph: &service.Graph{Node: d.keptNode(bytes.Repeat([]byte{1}, blocks*block), nil)}},
		{Name: "top", Path: filepath.Join(dir, "top.qcow2"), Backing: "mem"},
	}})
	seed := time.Now().UnixNano()
	t.Logf("seed %d", seed)
	var crowd sync.WaitGroup
	end := time.Now().Add(2 * time.Second)
	var did [2]int
	var mu sync.Mutex // protects did
	for n := range 8 {
		crowd.Go(func() {
			random := rand.New(rand.NewPCG(uint64(seed), uint64(n)))
			for time.Now().Before(end) {
				name, writes := names[random.IntN(len(names))], random.IntN(3) == 0
				if name == "over" && random.IntN(50) > 0 { // once it is open, it keeps the disk from being written to
					continue
				}
				off := int64(random.IntN(blocks)) * block
				err := useBlock(t, svc, name, writes, off, byte(2+random.IntN(200)), block)
				if err != nil && !errors.Is(err, storage.ErrConflict) {
					t.Errorf("%s: %v", name, err)
				}
				mu.Lock()
				if writes && err == nil {
					did[1]++
				} else if err == nil {
					did[0]++
				}
				mu.Unlock()
			}
		})
	}
	crowd.Wait()
	t.Logf("%d reads, %d writes", did[0], did[1])
	if did[0] == 0 || did[1] == 0 {
		t.Error("nobody got at anything")
	}
	if err := svc.Close(); err != nil {
		t.Error(err)
	}
	content, err := os.ReadFile(disk)
	if err != nil {
		t.Fatal(err)
	}
	for at := 0; at < len(content); at += block {
		if b := content[at : at+block]; b[0] == 0 || !bytes.Equal(b, bytes.Repeat(b[:1], block)) {
			t.Errorf("the block at %d is of several", at)
		}
	}
	if n := openFiles(t, dir); n > 0 {
		t.Errorf("%d files are open", n)
	}
	opened := 0
	for _, e := range d.take() {
		if e[0] == 'o' {
			opened++
		} else {
			opened--
		}
	}
	if opened != 0 {
		t.Errorf("%d nodes more were opened than closed", opened)
	}
}

// useBlock reads a block of an image, or writes it.
func useBlock(t *testing.T, svc *service.Service, name string, writes bool, off int64, fill byte, n int) error {
	acquire := svc.Acquire
	if writes {
		acquire = svc.AcquireWritable
	}
	h, err := acquire(t.Context(), name)
	if err != nil {
		return err
	}
	defer h.Release()
	p := bytes.Repeat([]byte{fill}, n)
	if writes {
		return h.Device().WriteAt(t.Context(), p, off)
	}
	return h.Device().ReadAt(t.Context(), p, off)
}
