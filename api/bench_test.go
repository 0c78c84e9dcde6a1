package api_test

import (
	"encoding/binary"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/extentd/extentd/api"
	"github.com/extentd/extentd/load"
	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/telemetry"
)

// A sink is a ResponseWriter that keeps nothing.
type sink struct {
	header http.Header
	status int
}

func (s *sink) Header() http.Header                 { return s.header }
func (s *sink) WriteHeader(status int)              { s.status = status }
func (s *sink) Write(p []byte) (int, error)         { return len(p), nil }
func (s *sink) ReadFrom(r io.Reader) (int64, error) { return r.(io.WriterTo).WriteTo(s) }

// BenchmarkDataRange is the cost of a small read without the network.
func BenchmarkDataRange(b *testing.B) {
	f := &fixture{dir: b.TempDir()}
	f.random(b, "disk.raw", 1<<20)
	svc, err := service.New(service.Options{Dir: f.dir, Formats: map[string]service.Driver{"raw": service.RawDriver()}})
	if err != nil {
		b.Fatal(err)
	}
	defer svc.Close()
	measure, err := telemetry.New(b.Context(), telemetry.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer measure.Shutdown(b.Context()) //nolint:errcheck // nothing is exported
	limits := load.New(load.Options{Connections: 4096, Transfers: 128 << 20, Stall: time.Minute})
	h := api.New(svc, api.Options{Telemetry: measure, Load: limits, Loopback: true, Logger: slog.New(slog.DiscardHandler)})
	r := httptest.NewRequest(http.MethodGet, "/v1/images/disk.raw/data", nil)
	r.Host = "127.0.0.1:7080"
	r.Header.Set("Range", "bytes=4096-8191")
	w := &sink{}
	b.ReportAllocs()
	for b.Loop() {
		w.header = make(http.Header, 16)
		h.ServeHTTP(w, r)
	}
}

// BenchmarkMap is the cost of an extent of a large qcow2 map as NDJSON, without
// the network.
func BenchmarkMap(b *testing.B) {
	f := &fixture{dir: b.TempDir()}
	writeStripedQCOW2(b, filepath.Join(f.dir, "disk.qcow2"))
	svc, err := service.New(service.Options{Dir: f.dir, Formats: map[string]service.Driver{"qcow2": service.QCOW2Driver()}})
	if err != nil {
		b.Fatal(err)
	}
	defer svc.Close()
	h := api.New(svc, api.Options{})
	r := httptest.NewRequest(http.MethodGet, "/v1/images/disk.qcow2/extents", nil)
	r.Header.Set("Accept", "application/x-ndjson")
	extents := 0
	for b.Loop() {
		h.ServeHTTP(&sink{header: http.Header{}}, r)
		extents += stripes
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(extents), "ns/extent")
}

// stripes is how many extents the image of writeStripedQCOW2 has.
const stripes = 1 << 18

// writeStripedQCOW2 writes an image with 4 KiB clusters of which every other one
// is allocated. It has no refcounts: it is for reading alone.
func writeStripedQCOW2(b testing.TB, path string) {
	b.Helper()
	const cluster, entries = 4096, 4096 / 8
	const tables = stripes / entries
	const l1, l2 = 2 * cluster, 3 * cluster
	data := uint64(l2 + tables*cluster)
	image := make([]byte, data)
	put := binary.BigEndian.PutUint64
	copy(image, "QFI\xfb\x00\x00\x00\x03")
	binary.BigEndian.PutUint32(image[20:], 12)
	put(image[24:], stripes*cluster)
	binary.BigEndian.PutUint32(image[36:], tables)
	put(image[40:], l1)
	put(image[48:], cluster)
	binary.BigEndian.PutUint32(image[56:], 1)
	binary.BigEndian.PutUint32(image[96:], 4)
	binary.BigEndian.PutUint32(image[100:], 104)
	for i := range tables {
		put(image[l1+8*i:], uint64(l2+i*cluster)|1<<63)
	}
	for i := 0; i < stripes; i += 2 {
		put(image[l2+8*i:], data|1<<63)
		data += cluster
	}
	if err := os.WriteFile(path, image, 0o600); err != nil {
		b.Fatal(err)
	}
	if err := os.Truncate(path, int64(data)); err != nil {
		b.Fatal(err)
	}
}
