package deploy

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// A workload that knows nothing of extentd but its label, and the name of a volume.
const workload = `apiVersion: %s
kind: %s
metadata:
  name: app
  labels: {extentd/sidecar: "true"}
spec:
%s  template:
    metadata:
      labels: {app: app}
    spec:
      restartPolicy: %s
      initContainers:
        - {name: prepare, image: prepare}
      containers:
        - {name: app, image: app, resources: {limits: {memory: 1Gi}}}
      volumes:
        - {name: images, emptyDir: {}}
        - {name: other, emptyDir: {}}
`

// The sidecar gets into whatever has pods, before what is there, and changes none
// of it.
func TestSidecar(t *testing.T) {
	s := newSchemas(t, kubernetes["1.29"])
	const selector = "  selector: {matchLabels: {app: app}}\n"
	for kind, w := range map[string]struct{ api, spec, restart string }{
		"Deployment":  {"apps/v1", selector, "Always"},
		"StatefulSet": {"apps/v1", "  serviceName: app\n" + selector, "Always"},
		"DaemonSet":   {"apps/v1", selector, "Always"},
		"Job":         {"batch/v1", "", "Never"},
	} {
		for _, socket := range []bool{false, true} {
			t.Run(fmt.Sprint(kind, " socket ", socket), func(t *testing.T) {
				components := []string{"sidecar"}
				if socket {
					components = append(components, "sidecar/socket")
				}
				text := fmt.Sprintf(workload, w.api, kind, w.spec, w.restart)
				built := build(t, overlay(t, text, components))
				if err := s.check(built[0]); err != nil {
					t.Error(err)
				}
				spec := as[corev1.PodSpec](t, dig(built[0], "spec", "template", "spec"))
				if i := spec.InitContainers; len(i) != 2 || i[0].Name != "extentd" || i[1].Name != "prepare" {
					t.Errorf("what starts first is %v", i)
				} else if i[0].RestartPolicy == nil || *i[0].RestartPolicy != corev1.ContainerRestartPolicyAlways {
					t.Error("extentd does not go on running")
				}
				if c := spec.Containers; len(c) != 1 || c[0].Name != "app" || c[0].Resources.Limits.Memory().String() != "1Gi" {
					t.Errorf("the containers are %v", c)
				}
				want := 2
				if socket {
					want++
				}
				if len(spec.Volumes) != want {
					t.Errorf("the volumes are %v", spec.Volumes)
				}
			})
		}
	}
	t.Run("no label", func(t *testing.T) {
		bare := "apiVersion: v1\nkind: Pod\nmetadata: {name: app}\nspec: {containers: [{name: app, image: app}]}\n"
		if built := build(t, overlay(t, bare, []string{"sidecar"})); dig(built[0], "spec", "initContainers") != nil {
			t.Error("a pod that has no label got a sidecar")
		}
	})
}

// overlay is a kustomization of one resource and components.
func overlay(t *testing.T, resource string, components []string) string {
	t.Helper()
	dir := t.TempDir()
	from, err := filepath.EvalSymlinks(dir)
	if err != nil {
		t.Fatal(err)
	}
	to, err := filepath.Abs(manifests)
	if err != nil {
		t.Fatal(err)
	}
	if to, err = filepath.Rel(from, to); err != nil {
		t.Fatal(err)
	}
	text := "resources: [resource.yaml]\ncomponents: ["
	for _, c := range components {
		text += filepath.Join(to, c) + ", "
	}
	text += "]\n"
	for name, content := range map[string]string{"kustomization.yaml": text, "resource.yaml": resource} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}
