package main

import (
	"context"
	"fmt"
	"os/exec"
	"syscall"
)

const ndjson = "Accept: application/x-ndjson"

// wholeMap streams the map of the comb, and compares with qemu-img map in time
// and memory.
func wholeMap(ctx context.Context, s *setup, results *table) error {
	for _, holes := range []bool{false, true} {
		if err := s.wholeMapOf(ctx, results, holes); err != nil {
			return err
		}
	}
	return nil
}

func (s *setup) wholeMapOf(ctx context.Context, results *table, holes bool) error {
	image, extents, err := s.comb(ctx, holes)
	if err != nil {
		return err
	}
	e, err := s.serveFresh(ctx)
	if err != nil {
		return err
	}
	defer e.stop()
	path := "/v1/images/" + image + "/extents"
	address := e.url + path
	if err := countLines(ctx, address, extents); err != nil {
		return err
	}
	what := fmt.Sprintf("map of %d extents", extents)
	if holes {
		what += " over holes"
	}
	var peerMemory int64
	peer := side{"qemu-img map", []string{image}, timed(func(ctx context.Context) error {
		var err error
		peerMemory, err = s.qemuMap(ctx, image)
		return err
	})}
	for _, client := range clients {
		err := s.compare(ctx, results, what+", NDJSON, "+client.name, 12,
			side{"extentd", []string{image}, timed(func(ctx context.Context) error { return client.get(ctx, address, -1, ndjson) })}, peer)
		if err != nil {
			return err
		}
	}
	return s.mapMemory(ctx, results, what+": memory, MiB more than for a hundredth of it", path, extents, peerMemory)
}

// qemuMap runs qemu-img map, whose output goes to this process, as curl's input
// comes from another, and returns the most memory that it used.
func (s *setup) qemuMap(ctx context.Context, image string) (int64, error) {
	cmd := exec.CommandContext(ctx, "qemu-img", "map", "-f", "qcow2", "--output=json", image)
	cmd.Dir = s.images
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	if _, _, err := count(out, 0); err != nil {
		return 0, err
	}
	if err := cmd.Wait(); err != nil {
		return 0, err
	}
	usage, _ := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	return usage.Maxrss << 10, nil
}

// mapMemory compares the peak of a server that streamed the whole map with that
// of one that streamed a hundredth of it. The difference is bounded by the cache
// of metadata.
func (s *setup) mapMemory(ctx context.Context, results *table, what, path string, extents, peer int64) error {
	var peaks [2]int64
	for i, part := range []int64{100, 1} {
		e, err := s.serveFresh(ctx)
		if err != nil {
			return err
		}
		address := e.url + path
		if length := extents / part * combCluster; part > 1 {
			address += fmt.Sprint("?length=", length)
		}
		if err := curl(ctx, address, -1, ndjson); err != nil {
			return err
		}
		if peaks[i], err = e.statusField("VmHWM"); err != nil {
			return err
		}
		e.stop()
	}
	results.atMost(what, size(peaks[1]), fmt.Sprintf("a hundredth %s; qemu-img %s", size(peaks[0]), size(peer)),
		float64(peaks[1]-peaks[0])/float64(mib), 40)
	return nil
}

// countLines verifies that the stream has a line for each extent.
func countLines(ctx context.Context, address string, want int64) error {
	out, err := exec.CommandContext(ctx, "sh", "-c", `curl -sS -f -H "$1" "$2" | wc -l`, "sh", ndjson, address).Output()
	if err != nil {
		return err
	}
	var got int64
	if _, err := fmt.Sscan(string(out), &got); err != nil || got != want {
		return fmt.Errorf("the map has %d lines, want %d (%w)", got, want, err)
	}
	return nil
}

// mapPages: what a page costs depends on its extents, and neither on where it
// is nor on the size of the map.
func mapPages(ctx context.Context, s *setup, results *table) error {
	image, extents, err := s.comb(ctx, false)
	if err != nil {
		return err
	}
	e, err := s.serve(ctx)
	if err != nil {
		return err
	}
	address := e.url + "/v1/images/" + image + "/extents"
	last := (extents - 1000) * combCluster
	pages := func(limit, count int, offset int64) func(ctx context.Context) (float64, error) {
		args := []string{"-sS", "-f"}
		for range count {
			args = append(args, "-o", "/dev/null", fmt.Sprintf("%s?limit=%d&offset=%d", address, limit, offset))
		}
		return timed(func(ctx context.Context) error { return exec.CommandContext(ctx, "curl", args...).Run() })
	}
	warm := []string{image}
	v, err := s.race(ctx, "pages",
		side{"500 pages of 1,000", warm, pages(1000, 500, 0)},
		side{"5 pages of 100,000", warm, pages(100_000, 5, 0)},
		side{"500 pages of 1,000 at the end", warm, pages(1000, 500, last)})
	if err != nil {
		return err
	}
	results.add("5 map pages of 100,000 extents", seconds(v[1]), "500 pages of 1,000 "+seconds(v[0]), v[0]/v[1], 0.8)
	results.add("500 map pages of 1,000 at the end", seconds(v[2]), "at the start "+seconds(v[0]), v[0]/v[2], 0.8)
	return nil
}
