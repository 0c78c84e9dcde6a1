package test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

// TestBombs: requests that are cheap to make and dear to answer are answered, many
// at a time, within the memory that the server may have.
func TestBombs(t *testing.T) {
	dir := t.TempDir()
	const size, cluster, budget = 512 << 20, 2 << 20, 128 << 20
	bigRaw(t, dir, "disk.raw", size)
	m := newMaker(t, dir, t.Name())
	// 512 MiB in a few hundred KiB, and 2 MiB to be unpacked for each byte.
	for _, codec := range []string{"zlib", "zstd"} {
		m.run("qemu-img", "convert", "-c", "-O", "qcow2", "-o", "cluster_size=2M,compression_type="+codec, "disk.raw", codec+".qcow2")
	}
	s := serve(t, dir, "--max-memory", "128MiB")
	s.client.Transport.(*http.Transport).MaxIdleConnsPerHost = 256
	get := func(image, ranges string) (int, error) {
		req, err := http.NewRequest(http.MethodGet, s.url+"/v1/images/"+image+"/data", http.NoBody)
		if err != nil {
			return 0, err
		}
		req.Header.Set("Range", "bytes="+ranges)
		resp, err := s.client.Do(req)
		if err != nil {
			return 0, err
		}
		defer resp.Body.Close()
		_, err = io.Copy(io.Discard, resp.Body)
		return resp.StatusCode, err
	}
	t.Run("clusters", func(t *testing.T) {
		each(128, func(i int) {
			image := []string{"zlib.qcow2", "zstd.qcow2"}[i%2]
			for n := range 4 {
				off := (i*4 + n) * 37 % (size / cluster) * cluster
				if status, err := get(image, fmt.Sprintf("%d-%d", off+4096, off+4096+511)); err != nil || status != http.StatusPartialContent && status != http.StatusServiceUnavailable {
					t.Errorf("one of %s at %d: status %d, %v", image, off, status, err)
				}
			}
		})
	})
	t.Run("downloads", func(t *testing.T) {
		each(32, func(i int) {
			image := []string{"zlib.qcow2", "zstd.qcow2"}[i%2]
			if status, err := get(image, fmt.Sprintf("%d-%d", i*cluster, i*cluster+4*cluster-1)); err != nil || status != http.StatusPartialContent {
				t.Errorf("%s: status %d, %v", image, status, err)
			}
		})
	})
	t.Run("ranges", func(t *testing.T) {
		var ranges []string
		for i := range 64 {
			off := i * 3 % (size / cluster) * cluster
			ranges = append(ranges, fmt.Sprintf("%d-%d", off+100, off+199))
		}
		each(32, func(i int) {
			if status, err := get([]string{"zlib.qcow2", "zstd.qcow2"}[i%2], strings.Join(ranges, ",")); err != nil || status != http.StatusPartialContent {
				t.Errorf("status %d, %v", status, err)
			}
		})
	})
	most := s.memory("VmHWM")
	t.Logf("at most %d MiB in memory", most>>20)
	if most > budget {
		t.Errorf("the server had %d MiB in memory, and may have %d", most>>20, int64(budget)>>20)
	}
}
