package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os/exec"
	"sync"
	"sync/atomic"
)

// piece is the size of the requests that write one after the other.
const piece = mib

// upload writes size bytes of a pattern to an image in pieces, in order, over so
// many connections with one request each in flight, and flushes: the cheapest
// client there is.
func upload(ctx context.Context, address string, size int64, connections int) error {
	u, err := url.Parse(address)
	if err != nil {
		return err
	}
	data := bytes.Repeat([]byte("not zeros, and not the same in each page. "), int(piece)/42+1)[:piece]
	var next atomic.Int64
	errs := make([]error, connections)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() { errs[i] = uploadPieces(ctx, u, data, size, &next) })
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return post(ctx, address[:len(address)-len("/data")]+"/flush", map[string]any{})
}

// uploadPieces sends what is next until there is no more.
func uploadPieces(ctx context.Context, u *url.URL, data []byte, size int64, next *atomic.Int64) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", u.Host)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	r := bufio.NewReader(conn)
	for {
		off := next.Add(piece) - piece
		if off >= size {
			return nil
		}
		n := min(piece, size-off)
		head := fmt.Sprintf("PUT %s HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\nContent-Range: bytes %d-%d/*\r\n\r\n",
			u.RequestURI(), u.Host, n, off, off+n-1)
		buffers := net.Buffers{[]byte(head), data[:n]}
		if _, err := buffers.WriteTo(conn); err != nil {
			return err
		}
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			return err
		}
		text, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusNoContent {
			return fmt.Errorf("PUT at %d: %s (%w)\n%s", off, resp.Status, err, text)
		}
	}
}

// post sends an object and wants a status of success.
func post(ctx context.Context, address string, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, address, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode/100 != 2 {
		return fmt.Errorf("POST %s: %s (%w)\n%s", address, resp.Status, err, text)
	}
	return nil
}

// fio runs a job over NBD and returns how many writes it got done a second, and
// how long it took.
func (s *setup) fio(ctx context.Context, uri string, args ...string) (rate, seconds float64, err error) {
	args = append([]string{"--name=job", "--ioengine=nbd", "--uri=" + uri, "--output-format=json", "--randrepeat=0"}, args...)
	cmd := exec.CommandContext(ctx, "fio", args...)
	cmd.Dir = s.dir
	out, err := cmd.Output()
	if err != nil {
		return 0, 0, fmt.Errorf("fio: %w\n%s", err, out)
	}
	var report struct {
		Jobs []struct {
			Write struct {
				IOPS    float64 `json:"iops"`
				Runtime float64 `json:"runtime"` // milliseconds
			} `json:"write"`
		} `json:"jobs"`
	}
	if at := bytes.IndexByte(out, '{'); at > 0 {
		out = out[at:] // it may complain before
	}
	if err := json.Unmarshal(out, &report); err != nil || len(report.Jobs) != 1 || report.Jobs[0].Write.IOPS == 0 {
		return 0, 0, fmt.Errorf("fio says %.500s (%w)", out, err)
	}
	w := report.Jobs[0].Write
	return w.IOPS, w.Runtime / 1000, nil
}
