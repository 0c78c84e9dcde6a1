package telemetry_test

import (
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/extentd/extentd/telemetry"
)

func scrape(m *telemetry.Telemetry) string {
	w := httptest.NewRecorder()
	m.Metrics().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	return w.Body.String()
}

// All metrics of a snapshot are of the same one, which is taken for each scrape.
func TestWatch(t *testing.T) {
	m, _ := traced(t)
	type snapshot struct{ reads, open int64 }
	taken := int64(0)
	read := func() snapshot {
		taken++
		return snapshot{reads: 10 * taken, open: taken}
	}
	err := telemetry.Watch(m, read,
		telemetry.Metric[snapshot]{Name: "test.reads", Unit: "{read}", Help: "Reads.", Labels: map[string]string{"kind": "all"}, Of: func(s *snapshot) float64 { return float64(s.reads) }},
		telemetry.Metric[snapshot]{Name: "test.reads", Unit: "{read}", Help: "Reads.", Labels: map[string]string{"kind": "half"}, Of: func(s *snapshot) float64 { return float64(s.reads / 2) }},
		telemetry.Metric[snapshot]{Name: "test.open", Unit: "By", Help: "Open.", Gauge: true, Of: func(s *snapshot) float64 { return float64(s.open) }},
	)
	if err != nil {
		t.Fatal(err)
	}
	for n, want := range [][]string{
		{`test_reads_total{kind="all",`, "} 10\n", `test_reads_total{kind="half",`, "} 5\n", "test_open_bytes{", "} 1\n"},
		{`test_reads_total{kind="all",`, "} 20\n", `test_reads_total{kind="half",`, "} 10\n", "test_open_bytes{", "} 2\n"},
	} {
		text := scrape(m)
		for i := 0; i < len(want); i += 2 {
			_, line, found := strings.Cut(text, want[i])
			line, _, _ = strings.Cut(line, "\n")
			if !found || !strings.HasSuffix(line+"\n", want[i+1]) {
				t.Errorf("scrape %d: %s...%s, want %s", n+1, want[i], line, want[i+1])
			}
		}
	}
	if taken != 2 {
		t.Errorf("%d snapshots were taken for 2 scrapes", taken)
	}
	if err := telemetry.Watch(m, read, telemetry.Metric[snapshot]{Name: "9 is no name"}); err == nil {
		t.Error("a name that is none is taken")
	}
}

// The process, the runtime and who it is are told without being asked for.
func TestStandardMetrics(t *testing.T) {
	m, _ := traced(t)
	text := scrape(m)
	for _, name := range []string{"process_resident_memory_bytes", "process_open_fds", "process_start_time_seconds", "go_goroutine_count", "go_memory_used_bytes", "target_info"} {
		if !strings.Contains(text, "\n"+name+" ") && !strings.Contains(text, "\n"+name+"{") {
			t.Errorf("no %s", name)
		}
	}
}
