package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
)

// changedBlocks tells two snapshots of a large image apart, of which a thousandth has
// changed: by what they have in common, and by walking both maps.
func changedBlocks(ctx context.Context, s *setup, results *table) error {
	const regions = 64
	length := s.vast()
	region := length / 1024 / regions
	image := "snapshots.qcow2"
	err := s.make(image, func(string) error {
		writes := []string{"qemu-io", "-f", "qcow2"}
		for k := range int64(regions) {
			writes = append(writes, "-c", fmt.Sprintf("write -P 7 %d %d", k*(length/regions), region))
		}
		for _, command := range [][]string{
			{"qemu-img", "create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", image, fmt.Sprint(length)},
			{"qemu-img", "snapshot", "-c", "one", image},
			append(writes, image),
			{"qemu-img", "snapshot", "-c", "two", image},
		} {
			if err := s.command(ctx, command...); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	e, err := s.serveFresh(ctx)
	if err != nil {
		return err
	}
	defer e.stop()
	address := e.url + "/v1/images/" + image + "/snapshots/"
	what := fmt.Sprintf("%d MiB changed between two snapshots of %d GiB", region*regions/mib, length/gib)
	return s.compare(ctx, results, what, 20,
		side{"extentd", nil, timed(func(ctx context.Context) error {
			return readLines(ctx, address+"two/extents?since=one&only=changed")
		})},
		side{"both maps", nil, timed(func(ctx context.Context) error {
			return errors.Join(readLines(ctx, address+"one/extents"), readLines(ctx, address+"two/extents"))
		})})
}

// readLines reads a map, in this process: starting another would take as long as
// there is to measure.
func readLines(ctx context.Context, address string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", "application/x-ndjson")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", address, resp.Status)
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}
