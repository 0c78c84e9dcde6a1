package api_test

import (
	"bytes"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/extentd/extentd/api"
	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/telemetry"
)

// A rewound body is the same at every request.
type rewound struct{ bytes.Reader }

func (r *rewound) Close() error { return nil }

// BenchmarkPut is the cost of a write of 4 KiB without the network.
func BenchmarkPut(b *testing.B) {
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
	h := api.New(svc, api.Options{Telemetry: measure, Loopback: true, Logger: slog.New(slog.DiscardHandler)})
	benchmarkPut(b, h)
}

// BenchmarkPutBare is what BenchmarkPut is measured against: as little as a
// server can do for the same write.
func BenchmarkPutBare(b *testing.B) {
	file, err := os.Create(filepath.Join(b.TempDir(), "disk.raw"))
	if err != nil {
		b.Fatal(err)
	}
	defer file.Close()
	p := make([]byte, 4096)
	benchmarkPut(b, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.ReadFull(r.Body, p); err != nil {
			b.Fatal(err)
		}
		if _, err := file.WriteAt(p, 8192); err != nil {
			b.Fatal(err)
		}
		w.WriteHeader(http.StatusNoContent)
	}))
}

func benchmarkPut(b *testing.B, h http.Handler) {
	r := httptest.NewRequest(http.MethodPut, "/v1/images/disk.raw/data", nil)
	r.Host = "127.0.0.1:7080"
	r.Header.Set("Content-Range", "bytes 8192-12287/*")
	r.ContentLength = 4096
	p := make([]byte, 4096)
	body := new(rewound)
	w := &sink{}
	b.ReportAllocs()
	b.SetBytes(int64(len(p)))
	for b.Loop() {
		body.Reset(p)
		r.Body = body
		w.header = make(http.Header, 16)
		w.status = 0
		h.ServeHTTP(w, r)
		if w.status != http.StatusNoContent {
			b.Fatal("status " + strconv.Itoa(w.status))
		}
	}
}
