package test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"
)

// overHTTP2 is a client that speaks HTTP/2 in the clear.
func overHTTP2(t testing.TB) *http.Client {
	t.Helper()
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	transport := &http.Transport{Protocols: protocols}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 2 * late}
}

// TestSlowStreams: a stream of HTTP/2 that stands still is ended, and the others of
// its connection go on.
func TestSlowStreams(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	const size = 64 << 20
	bigRaw(t, dir, "disk.raw", size)
	holey(t, dir, "holes.raw", 256<<20)
	s := serve(t, dir, "--stall", stallTime.String())
	client := overHTTP2(t)
	get := func(path, accept string) *http.Response {
		req, err := http.NewRequest(http.MethodGet, s.url+path, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Accept", accept)
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if resp.ProtoMajor != 2 || resp.StatusCode != http.StatusOK {
			t.Fatalf("%s %s", resp.Proto, resp.Status)
		}
		return resp
	}
	data := get("/v1/images/disk.raw/data", "*/*")
	defer data.Body.Close()
	lines := get("/v1/images/holes.raw/extents", "application/x-ndjson")
	defer lines.Body.Close()
	body, drip := io.Pipe()
	uploaded := make(chan error, 1)
	go func() {
		req, err := http.NewRequest(http.MethodPut, s.url+"/v1/images/disk.raw/data", body)
		if err != nil {
			uploaded <- err
			return
		}
		req.ContentLength = size
		resp, err := client.Do(req)
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusBadRequest {
				err = errors.New("told")
			}
		}
		uploaded <- err
	}()
	if _, err := drip.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	for start := time.Now(); time.Since(start) < 3*stallTime; {
		resp := get("/v1/images/disk.raw/limits", "*/*") // the same connection
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	for name, resp := range map[string]*http.Response{"data": data, "map": lines} {
		n, err := io.Copy(io.Discard, resp.Body)
		if err == nil {
			t.Errorf("%s: %d bytes came after all", name, n)
		}
	}
	select {
	case err := <-uploaded:
		if err == nil {
			t.Error("the upload succeeded")
		}
	case <-time.After(late):
		t.Error("the upload is still waited for")
	}
	_ = drip.Close()
}

// TestSteadyStream: a stream that gets on may take as long as it likes.
func TestSteadyStream(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	const size = 32 << 20
	bigRaw(t, dir, "disk.raw", size)
	s := serve(t, dir, "--stall", stallTime.String())
	resp, err := overHTTP2(t).Get(s.url + "/v1/images/disk.raw/data")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	total := int64(0)
	for range 32 { // far longer than the stall time in all
		n, err := io.CopyN(io.Discard, resp.Body, size/32)
		total += n
		if err != nil {
			t.Fatal(fmt.Errorf("after %d bytes: %w", total, err))
		}
		time.Sleep(stallTime / 8)
	}
}
