package deploy

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"sigs.k8s.io/yaml"
)

// operated are the kinds of the Prometheus operator, of which there are Go types.
var operated = map[string]func() any{
	"monitoring.coreos.com/v1 ServiceMonitor": func() any { return new(monitoring.ServiceMonitor) },
	"monitoring.coreos.com/v1 PrometheusRule": func() any { return new(monitoring.PrometheusRule) },
}

// valid says what is wrong with an object.
func (s *schemas) valid(o object) error {
	kind := fmt.Sprint(o["apiVersion"], " ", o["kind"])
	if empty, ok := operated[kind]; ok {
		asJSON, err := json.Marshal(o)
		if err != nil {
			return err
		}
		if err := yaml.UnmarshalStrict(asJSON, empty()); err != nil {
			return fmt.Errorf("%s: %w", kind, err)
		}
		return nil
	}
	return s.check(o)
}

// Every release takes everything that can be built.
func TestSchemas(t *testing.T) {
	for _, version := range slices.Sorted(maps.Keys(kubernetes)) {
		s := newSchemas(t, kubernetes[version])
		t.Run(version, func(t *testing.T) {
			for _, dir := range kustomizations(t, "Kustomization") {
				t.Run(strings.TrimPrefix(dir, manifests+"/"), func(t *testing.T) {
					for _, o := range build(t, dir) {
						if err := s.valid(o); err != nil {
							t.Errorf("%s: %v", text(o, "metadata", "name"), err)
						}
					}
				})
			}
		})
	}
}

// A mistake is an edit of the built example production, and what is said of it.
type mistake struct{ name, kind, from, to, want string }

var mistakes = []mistake{
	{"unknown field", "StatefulSet", "replicas:", "replica:", "replica"},
	{"unknown field deep inside", "StatefulSet", "readOnlyRootFilesystem:", "readonlyRootFilesystem:", "readonlyRootFilesystem"},
	{"wrong type", "StatefulSet", "replicas: 1", `replicas: "1"`, "replicas"},
	{"required field", "StatefulSet", "serviceName:", "#", "serviceName"},
	{"unknown kind", "StatefulSet", "kind: StatefulSet", "kind: StatfulSet", "StatfulSet"},
	{"version that is gone", "PodDisruptionBudget", "policy/v1", "policy/v1beta1", "v1beta1"},
	{"certificate", "Certificate", "secretName:", "secret:", "secret"},
	{"value that is none of a few", "Certificate", "algorithm: ECDSA", "algorithm: DSA", "algorithm"},
	{"network policy", "NetworkPolicy", "podSelector:", "selector:", "selector"},
	{"service monitor", "ServiceMonitor", "endpoints:", "endpoint:", "endpoint"},
}

// A check that finds nothing wrong is worth something if it can.
func TestMistakesAreFound(t *testing.T) {
	s := newSchemas(t, kubernetes["1.29"])
	built, err := kustomize(manifests + "/examples/production")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mistakes {
		t.Run(m.name, func(t *testing.T) {
			found := false
			for doc := range strings.SplitSeq(string(built), "\n---\n") {
				if !strings.Contains(doc, "kind: "+m.kind+"\n") || !strings.Contains(doc, m.from) {
					continue
				}
				found = true
				for _, o := range decode(t, []byte(strings.Replace(doc, m.from, m.to, 1))) {
					if err := s.valid(o); err == nil || !strings.Contains(err.Error(), m.want) {
						t.Errorf("%q for %q: %v", m.to, m.from, err)
					}
				}
			}
			if !found {
				t.Fatalf("no %s has %q", m.kind, m.from)
			}
		})
	}
}
