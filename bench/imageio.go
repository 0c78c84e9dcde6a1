package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/exec"
)

// besideImageio does what backup programs do in the dialect of oVirt imageio, with
// extentd and with ovirt-imageio in front of qemu-nbd.
func besideImageio(ctx context.Context, s *setup, results *table) error {
	peer, err := s.serveImageio(ctx)
	if err != nil {
		return err
	}
	defer peer.stop()
	e, err := s.serveFresh(ctx, "--dialect", "imageio")
	if err != nil {
		return err
	}
	defer e.stop()
	d := &dialect{s, e, peer, results}
	for _, work := range []func(ctx context.Context) error{d.wholeMap, d.readAndRanges} {
		if err := work(ctx); err != nil {
			return err
		}
	}
	return nil
}

// A dialect is two servers that speak it.
type dialect struct {
	*setup
	extentd *extentd
	peer    *imageio
	results *table
}

// serving calls do with the URLs of an image at both servers.
func (d *dialect) serving(ctx context.Context, image string, size int64, do func(ours, theirs string) error) error {
	nbd, p, err := d.nbdForImageio(ctx, image)
	if err != nil {
		return err
	}
	defer p.stop()
	theirs, err := d.peer.admit(ctx, image, nbd, size)
	if err != nil {
		return err
	}
	ours, err := d.extentd.admit(ctx, image)
	if err != nil {
		return err
	}
	return do(ours, theirs)
}

// wholeMap gets all extents of the comb, in one answer.
func (d *dialect) wholeMap(ctx context.Context) error {
	image, extents, err := d.comb(ctx, false)
	if err != nil {
		return err
	}
	return d.serving(ctx, image, extents*combCluster, func(ours, theirs string) error {
		ours, theirs = ours+"/extents", theirs+"/extents"
		if err := countExtents(ctx, ours, extents); err != nil {
			return err
		}
		length, err := sameAnswer(ctx, ours, theirs)
		if err != nil {
			return err
		}
		// One is sent in chunks, and its end is looked at; the other has a length.
		return d.download(ctx, fmt.Sprintf("imageio: map of %d extents", extents), 10, image, ours, theirs, -1, length)
	})
}

// readAndRanges reads the whole of a plain qcow2 image, and with 16 connections 4 KiB
// at a time of it.
func (d *dialect) readAndRanges(ctx context.Context) error {
	_, image, err := d.randomRaw(ctx)
	if err != nil {
		return err
	}
	length := d.diskSize()
	return d.serving(ctx, image, length, func(ours, theirs string) error {
		if _, err := sameAnswer(ctx, ours, theirs); err != nil {
			return err
		}
		err := d.download(ctx, "imageio: whole read of qcow2, "+size(length), 4, image, ours, theirs, length, length)
		if err != nil {
			return err
		}
		get := func(address string) func(ctx context.Context) (float64, error) {
			return func(ctx context.Context) (float64, error) { return d.ranges(ctx, address, length) }
		}
		what := "imageio: random 4 KiB ranges of qcow2, 16 connections"
		v, err := d.race(ctx, what, side{"extentd", []string{image}, get(ours)}, side{"ovirt-imageio", []string{image}, get(theirs)})
		if err != nil {
			return err
		}
		d.results.add(what, rate(v[0]), "ovirt-imageio "+rate(v[1]), v[0]/v[1], 8)
		return nil
	})
}

// download gets an answer of both servers with each client. The bytes that are to
// come are those of clients' get.
func (d *dialect) download(ctx context.Context, what string, goal float64, image, ours, theirs string, wantOurs, wantTheirs int64) error {
	for _, client := range clients {
		get := func(address string, want int64) func(ctx context.Context) (float64, error) {
			return timed(func(ctx context.Context) error { return client.get(ctx, address, want) })
		}
		err := d.compare(ctx, d.results, what+", "+client.name, goal,
			side{"extentd", []string{image}, get(ours, wantOurs)},
			side{"ovirt-imageio", []string{image}, get(theirs, wantTheirs)})
		if err != nil {
			return err
		}
	}
	return nil
}

// countExtents verifies that the map has an object for each extent.
func countExtents(ctx context.Context, address string, want int64) error {
	out, err := exec.CommandContext(ctx, "sh", "-c", `curl -sS -f "$1" | tr -cd '{' | wc -c`, "sh", address).Output()
	if err != nil {
		return err
	}
	var got int64
	if _, err := fmt.Sscan(string(out), &got); err != nil || got != want {
		return fmt.Errorf("the map has %d extents, want %d (%w)", got, want, err)
	}
	return nil
}

// sameAnswer verifies that two servers answer the same, byte for byte, and returns
// how long it is.
func sameAnswer(ctx context.Context, ours, theirs string) (int64, error) {
	var bodies [2]io.Reader
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DisableCompression: true}}
	for i, address := range []string{ours, theirs} {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
		if err != nil {
			return 0, err
		}
		resp, err := client.Do(req)
		if err != nil {
			return 0, err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return 0, fmt.Errorf("%s: %s", address, resp.Status)
		}
		bodies[i] = resp.Body
	}
	var a, b [256 << 10]byte
	for length := int64(0); ; {
		n, err := io.ReadFull(bodies[0], a[:])
		m, err2 := io.ReadFull(bodies[1], b[:])
		if !bytes.Equal(a[:n], b[:m]) {
			at := 0
			for at < min(n, m) && a[at] == b[at] {
				at++
			}
			return 0, fmt.Errorf("extentd and ovirt-imageio differ at byte %d: %.80q and %.80q", length+int64(at), a[at:n], b[at:m])
		}
		length += int64(n)
		for _, err := range []error{err, err2} {
			if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
				return 0, err
			}
		}
		if n < len(a) {
			return length, nil
		}
	}
}
