package test

import (
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/extentd/extentd/storage/nbd/wire"
)

// A scrape is what /metrics says.
type scrape struct {
	families map[string]string    // type by name
	series   map[string]bool      // names of samples
	samples  map[string]sampleSet // by name
}

// A sampleSet has values by labels, as the server writes them.
type sampleSet map[string]float64

var labelPattern = regexp.MustCompile(`(\w+)="((?:[^"\\]|\\.)*)"`)

// metrics scrapes the server.
func (s *server) metrics(t testing.TB) *scrape {
	t.Helper()
	_, body := s.expect(t, http.StatusOK, "/metrics")
	out := &scrape{families: map[string]string{}, series: map[string]bool{}, samples: map[string]sampleSet{}}
	for line := range strings.Lines(string(body)) {
		line = strings.TrimSpace(line)
		if rest, ok := strings.CutPrefix(line, "# TYPE "); ok {
			name, kind, _ := strings.Cut(rest, " ")
			out.families[name] = kind
		}
		if line == "" || line[0] == '#' {
			continue
		}
		at := strings.LastIndexByte(line, ' ')
		name, labels, _ := strings.Cut(line[:at], "{")
		value, err := strconv.ParseFloat(line[at+1:], 64)
		if err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		out.series[name] = true
		if out.samples[name] == nil {
			out.samples[name] = sampleSet{}
		}
		out.samples[name][labels] += value
	}
	return out
}

// sum adds up the samples of a name that have all of the labels: `key="value"`.
func (c *scrape) sum(name string, labels ...string) float64 {
	total := 0.0
	for have, value := range c.samples[name] {
		if !slices.ContainsFunc(labels, func(want string) bool { return !strings.Contains(have, want) }) {
			total += value
		}
	}
	return total
}

// busy is a server that has done some of everything that is counted.
func busy(t *testing.T) *server {
	t.Helper()
	dir := t.TempDir()
	m := newMaker(t, dir, "x")
	file := m.create(".qcow2", 4*mib)
	s := serve(t, dir, overNBD()...)
	must(t, s.put(file, 0, make([]byte, 4096), true))
	s.expect(t, http.StatusOK, imagePath(file, "/data"))
	c := s.openNBD(t, file, true)
	if _, err := c.do(wire.CmdRead, 0, 0, 512, nil); err != nil {
		t.Fatal(err)
	}
	return s
}

// Every metric that there is stands in the documentation, with its type and its
// labels, and nothing else does.
func TestMetricsAreDocumented(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../docs/telemetry.md")
	if err != nil {
		t.Fatal(err)
	}
	type family struct{ Type, Labels string }
	documented := map[string]family{}
	row := regexp.MustCompile("(?m)^\\| `([a-z_0-9]+)` \\| (counter|gauge|histogram) \\|([^|]*)\\|")
	same := ""
	for _, found := range row.FindAllStringSubmatch(string(text), -1) {
		var names []string
		for _, label := range regexp.MustCompile("`(\\w+)`").FindAllStringSubmatch(found[3], -1) {
			names = append(names, label[1])
		}
		slices.Sort(names)
		labels := strings.Join(names, " ")
		if strings.TrimSpace(found[3]) == "the same" {
			labels = same
		}
		same = labels
		documented[found[1]] = family{found[2], labels}
	}
	c := busy(t).metrics(t)
	actual := map[string]family{}
	for name, kind := range c.families {
		actual[name] = family{kind, c.labels(name)}
	}
	// These are labels of what did not happen here, or of what the environment says.
	ignored := map[string]string{"http_server": "error_type", "target_info": "OTEL_RESOURCE_ATTRIBUTES"}
	for name, f := range documented {
		for prefix, label := range ignored {
			if strings.HasPrefix(name, prefix) {
				f.Labels = strings.TrimSpace(strings.Replace(f.Labels, label, "", 1))
				documented[name] = f
			}
		}
	}
	if len(actual) < 50 {
		t.Errorf("only %d metrics", len(actual))
	}
	if diff := cmp.Diff(documented, actual); diff != "" {
		t.Errorf("(-documented +actual):\n%s", diff)
	}
}

// labels are those of a family, sorted, but for the ones that all have.
func (c *scrape) labels(family string) string {
	names := map[string]bool{}
	for _, suffix := range []string{"", "_count"} {
		for labels := range c.samples[family+suffix] {
			for _, found := range labelPattern.FindAllStringSubmatch(labels, -1) {
				if !strings.HasPrefix(found[1], "otel_scope_") {
					names[found[1]] = true
				}
			}
		}
	}
	return strings.Join(slices.Sorted(maps.Keys(names)), " ")
}

// The dashboard and the alerts are read as Prometheus reads them, and name no
// metric that there is not.
func TestDashboardAndRules(t *testing.T) {
	t.Parallel()
	cmd := exec.Command("go", "run", "-C", "../tools/promcheck", ".", "../../deploy/prometheus/rules.yaml", "../../deploy/grafana/extentd.json")
	cmd.Env = append(os.Environ(), "GOFLAGS=")
	var stderr output
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v (go -C tools/promcheck mod download, if modules are missing)\n%s", err, &stderr)
	}
	names := strings.Fields(string(out))
	if len(names) < 30 {
		t.Errorf("only %d metrics: %q", len(names), names)
	}
	c := busy(t).metrics(t)
	for _, name := range names {
		if name != "up" && !c.series[name] { // up is Prometheus's own
			t.Errorf("there is no %s", name)
		}
	}
}

// What happens is counted, and counted once.
func TestMetricsCount(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	m := newMaker(t, dir, "x")
	file, other := m.create(".qcow2", 4*mib), m.create("-other.qcow2", 4*mib)
	m.io(file, "write 0 64k", "write -c 1M 64k")
	s := serve(t, dir, overNBD("--idle", "100ms", "--state", filepath.Join(dir, "kept"))...)
	before := s.metrics(t)
	for range 5 {
		s.expect(t, http.StatusPartialContent, imagePath(file, "/data"), "Range", "bytes=0-4095")
		s.expect(t, http.StatusPartialContent, imagePath(file, "/data"), "Range", "bytes=1048576-1052671")
	}
	must(t, s.put(file, 0, make([]byte, 1000), true))
	g, err := s.allocate(file, object{"length": 128 * kib})
	must(t, err)
	s.expect(t, http.StatusNotFound, imagePath("none.raw", "/data"))
	c := s.openNBD(t, file, true)
	for range 3 {
		if _, err := c.do(wire.CmdRead, 0, 0, 8192, nil); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.do(wire.CmdWrite, wire.FlagPayloadLen, 0, 0, make([]byte, 512)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.do(wire.CmdRead, 0, 64*mib, 512, nil); err == nil {
		t.Error("a read past the end succeeded")
	}
	h := hold(t, m, other)
	s.expect(t, http.StatusConflict, imagePath(other, "/data"))
	h.release()
	after := s.metrics(t)
	for _, want := range []struct {
		by     float64
		name   string
		labels []string
	}{
		{10, "http_server_request_duration_seconds_count", []string{`http_route="/v1/images/{image}/data"`, `http_response_status_code="206"`}},
		{1, "http_server_request_duration_seconds_count", []string{`http_route="/v1/images/{image}/data"`, `http_response_status_code="404"`}},
		{1, "http_server_request_duration_seconds_count", []string{`http_route="/v1/images/{image}/data"`, `http_response_status_code="409"`}},
		{1000, "http_server_request_body_received_bytes_total", []string{`http_request_method="PUT"`}},
		{40960, "http_server_response_body_sent_bytes_total", []string{`http_response_status_code="206"`}},
		{1, "extentd_image_opens_total", []string{`result="failed"`}},
		{1, "extentd_image_lock_conflicts_total", nil},
		{1, "extentd_allocations", nil},
		{131072, "extentd_allocations_reserved_bytes", nil},
		{4, "extentd_cache_lookups_total", []string{`cache="unpacked"`, `result="hit"`}},
		{1, "extentd_cache_lookups_total", []string{`cache="unpacked"`, `result="miss"`}},
		{2, "extentd_audit_records_total", []string{`result="written"`}},
		{1, "extentd_nbd_connections_open", nil},
		{1, "extentd_nbd_connections_total", []string{`result="served"`}},
		{4, "extentd_nbd_requests_total", []string{`command="read"`}},
		{1, "extentd_nbd_errors_total", []string{`command="read"`}},
		{3 * 8192, "extentd_nbd_bytes_total", []string{`command="read"`}},
		{512, "extentd_nbd_bytes_total", []string{`command="write"`}},
	} {
		if got := after.sum(want.name, want.labels...) - before.sum(want.name, want.labels...); got != want.by {
			t.Errorf("%s %v went up by %v, want %v", want.name, want.labels, got, want.by)
		}
	}
	if hits := after.sum("extentd_cache_lookups_total", `cache="metadata"`, `result="hit"`); hits < 5 {
		t.Errorf("%v hits of the metadata cache", hits)
	}
	must(t, c.conn.Close())
	must(t, s.giveBack(file, g.ID))
	must(t, s.awaitClosed(m.path(file)))
	closed := s.metrics(t)
	for name, have := range after.samples {
		if kind := after.families[name]; kind != "counter" || !strings.HasPrefix(name, "extentd_") {
			continue
		}
		for labels, value := range have {
			if closed.samples[name][labels] < value {
				t.Errorf("%s{%s went down from %v to %v when images were closed", name, labels, value, closed.samples[name][labels])
			}
		}
	}
	if n := closed.sum("extentd_allocations"); n != 0 {
		t.Errorf("%v allocations are left", n)
	}
}

// Leaked clusters are told of until they are repaired, or the image is gone.
func TestMetricsOfLeaks(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	m := newMaker(t, dir, "x")
	file, gone := m.create(".qcow2", 4*mib), m.create("-gone.qcow2", 4*mib)
	s := serve(t, dir, "--state", filepath.Join(dir, "kept"))
	for _, f := range []string{file, gone} {
		_, err := s.allocate(f, object{"length": 192 * kib})
		must(t, err)
		must(t, s.flush(f))
	}
	s.kill()
	must(t, os.RemoveAll(filepath.Join(dir, "kept"))) // nobody knows what was allocated
	s = serve(t, dir, "--idle", "100ms")
	want := func(what string, leaked, found, repaired float64) {
		t.Helper()
		c := s.metrics(t)
		got := []float64{c.sum("extentd_leaked_clusters"), c.sum("extentd_check_leaks_total", `state="found"`), c.sum("extentd_check_leaks_total", `state="repaired"`)}
		if diff := cmp.Diff([]float64{leaked, found, repaired}, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
	}
	for _, f := range []string{file, gone} {
		v, err := s.check(f, "none")
		must(t, err)
		if v.Leaks != 3 {
			t.Fatalf("%d clusters of %s leaked, want 3", v.Leaks, f)
		}
	}
	want("after two checks", 6, 6, 0)
	_, err := s.check(file, "leaks")
	must(t, err)
	want("after the repair of one", 3, 9, 3)
	a, err := s.send(http.MethodDelete, imagePath(gone, ""), nil)
	must(t, accepted("DELETE", a, err, http.StatusNoContent))
	want("after the other was deleted", 0, 9, 3)
}

// What clients send makes no series.
func TestMetricsAreBounded(t *testing.T) {
	t.Parallel()
	s := serve(t, t.TempDir())
	series := func() (n int) {
		for _, have := range s.metrics(t).samples {
			n += len(have)
		}
		return n
	}
	ask := func(n int) {
		for i := range n {
			s.do(t, "GET", fmt.Sprintf("/nowhere-%d", i)).Body.Close()
			s.do(t, "GET", imagePath(fmt.Sprintf("none-%d.raw", i), "")).Body.Close()
			s.do(t, fmt.Sprintf("BREW%d", i), "/v1/images", "Traceparent", strconv.Itoa(i), "User-Agent", strconv.Itoa(i)).Body.Close()
		}
	}
	ask(1)
	series() // /metrics itself
	before := series()
	ask(100)
	if after := series(); after != before {
		t.Errorf("%d series became %d", before, after)
	}
}

// The server goes on, and stops in time, where nobody takes what it pushes.
func TestTelemetryWithoutCollector(t *testing.T) {
	t.Parallel()
	s := serveWith(t, t.TempDir(), []string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:1"})
	s.expect(t, http.StatusOK, "/v1/images")
	began := time.Now()
	s.stop()
	if took := time.Since(began); took > 14*time.Second {
		t.Errorf("stopping took %v", took)
	}
}
