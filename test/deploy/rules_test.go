package deploy

import (
	"bytes"
	"flag"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the PrometheusRule anew")

const rule = `# The rules of deploy/prometheus/rules.yaml, as a resource. Made by
#     go -C test/deploy test -run TestRules -update
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: extentd
  labels:
    app.kubernetes.io/name: extentd
spec:
`

// The resource holds the rules that there are for everybody.
func TestRules(t *testing.T) {
	var want strings.Builder
	want.WriteString(rule)
	rules := strings.Lines(string(mustRead(t, manifests+"/prometheus/rules.yaml")))
	for line := range rules {
		switch {
		case strings.HasPrefix(line, "#"):
		case line == "\n":
			want.WriteString(line)
		default:
			want.WriteString("  " + line)
		}
	}
	file := manifests + "/components/dashboards/prometheusrule.yaml"
	if *update {
		if err := os.WriteFile(file, []byte(want.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(mustRead(t, file), []byte(want.String())) {
		t.Errorf("%s is not made from the rules as they are: see its first lines", file)
	}
}
