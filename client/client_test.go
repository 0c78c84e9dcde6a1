package client_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/extentd/extentd/api"
	"github.com/extentd/extentd/api/conn"
	"github.com/extentd/extentd/client"
	"github.com/extentd/extentd/service"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const size = 3 << 20

// start serves vm.qcow2, an image over a backing file with data, zeros and
// holes, and returns a client and what a guest reads.
func start(t *testing.T) (*client.ClientWithResponses, []byte) {
	t.Helper()
	dir := t.TempDir()
	content := make([]byte, size)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for i := range content[:2<<20] {
		content[i] = byte(r.Uint32())
	}
	if err := os.WriteFile(filepath.Join(dir, "base.raw"), content, 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) {
		if _, err := exec.LookPath(args[0]); err != nil {
			t.Fatalf("%v: apt-get install qemu-utils", err)
		}
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "vm.qcow2")
	run("qemu-io", "-f", "qcow2", "-c", "write -P 7 100k 200k", "-c", "write -z 1M 128k", "vm.qcow2")
	copy(content[100<<10:], bytes.Repeat([]byte{7}, 200<<10))
	clear(content[1<<20 : 1<<20+128<<10])

	svc, err := service.New(service.Options{Dir: dir, Formats: map[string]service.Driver{"raw": service.RawDriver(), "qcow2": service.QCOW2Driver()}})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(api.New(svc, api.Options{}))
	srv.Listener = conn.Wrap(srv.Listener, conn.Options{})
	srv.Config.ConnContext = conn.Context
	srv.Start()
	transport := new(http.Transport)
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		srv.Close()
		if err := svc.Close(); err != nil {
			t.Error(err)
		}
	})
	c, err := client.NewClientWithResponses(srv.URL, client.WithHTTPClient(&http.Client{Transport: transport}))
	if err != nil {
		t.Fatal(err)
	}
	return c, content
}

// read reads a range and returns it with the ETag.
func read(ctx context.Context, c *client.ClientWithResponses, off, n int64, ifRange string) ([]byte, string, error) {
	part := fmt.Sprintf("bytes=%d-%d", off, off+n-1)
	params := &client.GetDataParams{Range: &part}
	if ifRange != "" {
		params.IfRange = &ifRange
	}
	resp, err := c.GetData(ctx, "vm.qcow2", params)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusPartialContent {
		return nil, "", fmt.Errorf("status %s", resp.Status)
	}
	data, err := io.ReadAll(resp.Body)
	return data, resp.Header.Get("ETag"), err
}

// A client that was generated from the contract finds an image and reads it, in
// parallel.
func TestReadAnImage(t *testing.T) {
	c, content := start(t)
	ctx := t.Context()
	list, err := c.ListImagesWithResponse(ctx, &client.ListImagesParams{})
	if err != nil || list.JSON200 == nil || len(list.JSON200.Images) != 2 || list.JSON200.Images[1].Name != "vm.qcow2" {
		t.Fatalf("%v: %s", err, list.Body)
	}
	img, err := c.GetImageWithResponse(ctx, "vm.qcow2")
	if err != nil || img.JSON200 == nil || img.JSON200.Size != size || len(img.JSON200.Layers) != 2 || img.JSON200.Qcow2 == nil {
		t.Fatalf("%v: %s", err, img.Body)
	}
	limits, err := c.GetLimitsWithResponse(ctx, "vm.qcow2")
	if err != nil || limits.JSON200 == nil || *limits.JSON200 != img.JSON200.Limits {
		t.Fatalf("%v: %s", err, limits.Body)
	}
	got := make([]byte, size)
	var wg sync.WaitGroup
	const piece = 300_000
	for off := int64(0); off < size; off += piece {
		wg.Go(func() {
			n := min(piece, size-off)
			data, etag, err := read(ctx, c, off, n, `"`+img.JSON200.DataGeneration+`"`)
			if err != nil || etag != `"`+img.JSON200.DataGeneration+`"` {
				t.Errorf("%d bytes at %d: ETag %s, %v", n, off, etag, err)
			}
			copy(got[off:], data)
		})
	}
	wg.Wait()
	if !bytes.Equal(got, content) {
		t.Error("what was read differs")
	}
	if _, _, err := read(ctx, c, 0, 10, `"other"`); err == nil || err.Error() != "status 200 OK" {
		t.Errorf("If-Range with another ETag: %v", err)
	}
}

// Pages and lines of the map agree, and lead to the data that is no zeros.
func TestReadAMap(t *testing.T) {
	c, content := start(t)
	ctx := t.Context()
	var extents []client.Extent
	limit := 2
	var etag string
	for next := new(int64); next != nil; {
		page, err := c.GetExtentsWithResponse(ctx, "vm.qcow2", &client.GetExtentsParams{Offset: next, Limit: &limit})
		if err != nil || page.JSON200 == nil {
			t.Fatalf("%v: %s", err, page.Body)
		}
		extents = append(extents, page.JSON200.Extents...)
		next, etag = page.JSON200.Next, page.HTTPResponse.Header.Get("ETag")
	}
	resp, err := c.GetExtents(ctx, "vm.qcow2", nil, func(_ context.Context, r *http.Request) error {
		r.Header.Set("Accept", "application/x-ndjson")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for i := 0; lines.Scan(); i++ {
		var e client.Extent
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil || i >= len(extents) || e.Offset != extents[i].Offset || e.Length != extents[i].Length {
			t.Fatalf("line %d: %s (%v)", i, lines.Text(), err)
		}
	}
	var at int64
	for _, e := range extents {
		if e.Offset != at {
			t.Fatalf("extent at %d, want %d", e.Offset, at)
		}
		at += e.Length
		if e.Zero && len(bytes.Trim(content[e.Offset:at], "\x00")) > 0 {
			t.Errorf("%+v is not zero", e)
		}
	}
	if at != size || len(extents) < 5 {
		t.Errorf("%d extents end at %d", len(extents), at)
	}
	again, err := c.GetExtentsWithResponse(ctx, "vm.qcow2", &client.GetExtentsParams{IfNoneMatch: &etag})
	if err != nil || again.StatusCode() != http.StatusNotModified {
		t.Errorf("If-None-Match: %s: %s, %v", etag, again.Status(), err)
	}
}

// An upload through an allocation: two at once, each published when it is
// complete, and only if nobody else has changed the map meanwhile.
func TestUpload(t *testing.T) {
	c, content := start(t)
	ctx := t.Context()
	const half = 1 << 20
	var wg sync.WaitGroup
	for i := range 2 {
		body := bytes.Repeat([]byte{byte(0xa0 + i)}, half)
		copy(content[i*half:], body)
		wg.Go(func() {
			if err := upload(ctx, c, int64(i*half), body); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	at := fmt.Sprintf("bytes %d-%d/*", 2*half+5, 2*half+9)
	put, err := c.PutDataWithBodyWithResponse(ctx, "vm.qcow2", &client.PutDataParams{ContentRange: &at}, "application/octet-stream", bytes.NewReader([]byte("hello")))
	if err != nil || put.StatusCode() != http.StatusNoContent {
		t.Errorf("%v: %s", err, put.Body)
	}
	copy(content[2*half+5:], "hello")
	zero, err := c.ZeroDataWithResponse(ctx, "vm.qcow2", nil, client.ZeroRange{Offset: 3, Length: 70_000})
	if err != nil || zero.StatusCode() != http.StatusNoContent {
		t.Errorf("%v: %s", err, zero.Body)
	}
	clear(content[3:70_003])
	got, err := c.GetDataWithResponse(ctx, "vm.qcow2", nil)
	if err != nil || !bytes.Equal(got.Body, content) {
		t.Errorf("%v: what was written differs", err)
	}
	size := int64(half)
	shrunk, err := c.PatchImageWithResponse(ctx, "vm.qcow2", nil, client.ImagePatch{Size: &size})
	if err != nil || shrunk.ApplicationproblemJSON400 == nil {
		t.Errorf("%v: %s", err, shrunk.Body)
	}
	report, err := c.CheckImageWithResponse(ctx, "vm.qcow2", client.CheckRequest{})
	if err != nil || report.JSON200 == nil || report.JSON200.Corruptions != 0 || report.JSON200.Leaks != 0 {
		t.Errorf("%v: %s", err, report.Body)
	}
}

// upload makes body what the image holds from off on.
func upload(ctx context.Context, c *client.ClientWithResponses, off int64, body []byte) error {
	const image = "vm.qcow2"
	length := int64(len(body))
	a, err := c.CreateAllocationWithResponse(ctx, image, nil, client.AllocationRequest{Length: &length})
	if err != nil || a.JSON201 == nil {
		return fmt.Errorf("%w: %s", err, a.Body)
	}
	id := a.JSON201.Id
	for start := int64(0); start < length; start += 300_000 {
		n := min(300_000, length-start)
		at := fmt.Sprintf("bytes %d-%d/%d", start, start+n-1, length)
		put, err := c.PutAllocationDataWithBodyWithResponse(ctx, image, id, &client.PutAllocationDataParams{ContentRange: &at}, "application/octet-stream", bytes.NewReader(body[start:start+n]))
		if err != nil || put.StatusCode() != http.StatusNoContent {
			return fmt.Errorf("%w: %s", err, put.Body)
		}
	}
	for zero := int64(0); ; {
		page, err := c.GetExtentsWithResponse(ctx, image, nil)
		if err != nil || page.JSON200 == nil {
			return fmt.Errorf("%w: %s", err, page.Body)
		}
		etag := page.HTTPResponse.Header.Get("ETag")
		done, err := c.UpdateMappingsWithResponse(ctx, image, &client.UpdateMappingsParams{IfMatch: &etag}, client.MappingUpdates{Updates: []client.MappingUpdate{{
			Offset: off, Length: length, Target: client.MappingTarget{Kind: client.MappingTargetKindData, Allocation: &id, AllocationOffset: &zero},
		}}})
		switch {
		case err != nil:
			return err
		case done.StatusCode() == http.StatusPreconditionFailed: // another one was faster
		case done.JSON200 == nil:
			return fmt.Errorf("%s", done.Body)
		default:
			gone, err := c.DeleteAllocationWithResponse(ctx, image, id)
			if err != nil || gone.StatusCode() != http.StatusNoContent {
				return fmt.Errorf("%w: %s", err, gone.Body)
			}
			return nil
		}
	}
}

// Errors arrive as problems.
func TestProblems(t *testing.T) {
	c, _ := start(t)
	ctx := t.Context()
	missing, err := c.GetImageWithResponse(ctx, "missing.raw")
	if err != nil || missing.ApplicationproblemJSON404 == nil || missing.ApplicationproblemJSON404.Type != "/problems/not-found" {
		t.Errorf("%v: %s", err, missing.Body)
	}
	limit := 0
	invalid, err := c.GetExtentsWithResponse(ctx, "vm.qcow2", &client.GetExtentsParams{Limit: &limit})
	if err != nil || invalid.ApplicationproblemJSON400 == nil || len(*invalid.ApplicationproblemJSON400.Errors) != 1 {
		t.Errorf("%v: %s", err, invalid.Body)
	}
	outside := "bytes=99999999-"
	data, err := c.GetDataWithResponse(ctx, "vm.qcow2", &client.GetDataParams{Range: &outside})
	if err != nil || data.ApplicationproblemJSON416 == nil || *data.ApplicationproblemJSON416.Size != size {
		t.Errorf("%v: %s", err, data.Body)
	}
	head, err := c.HeadData(ctx, "vm.qcow2", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer head.Body.Close()
	if head.StatusCode != http.StatusOK || head.ContentLength != size {
		t.Errorf("HEAD: %v", head)
	}
}
