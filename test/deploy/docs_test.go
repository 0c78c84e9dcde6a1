package deploy

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// documented is the block of docs/kubernetes.md that holds a text.
func documented(t *testing.T, holds string) string {
	t.Helper()
	for _, m := range regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(string(mustRead(t, "../../docs/kubernetes.md")), -1) {
		if strings.Contains(m[1], holds) {
			return m[1]
		}
	}
	t.Fatalf("docs/kubernetes.md has no example with %q", holds)
	return ""
}

// The patches that the documentation shows do what it says.
func TestDocumentedPatches(t *testing.T) {
	patched := func(t *testing.T, resource string, components []string, kustomization string) object {
		t.Helper()
		dir := overlay(t, resource, components)
		file := filepath.Join(dir, "kustomization.yaml")
		if err := os.WriteFile(file, append(mustRead(t, file), kustomization...), 0o644); err != nil {
			t.Fatal(err)
		}
		return build(t, dir)[0]
	}
	t.Run("restore", func(t *testing.T) {
		job := strings.NewReplacer("%s  template", "  template", "%s", "batch/v1").Replace(workload)
		job = strings.Replace(job, "kind: batch/v1", "kind: Job", 1)
		job = strings.Replace(job, "restartPolicy: batch/v1", "restartPolicy: Never", 1)
		job = strings.Replace(job, "name: app\n", "name: restore\n", 1)
		o := patched(t, job, []string{"sidecar"}, documented(t, "name: restore"))
		c := as[corev1.PodSpec](t, dig(o, "spec", "template", "spec")).InitContainers[0]
		if v := setting(&c, "read-only"); v != "false" {
			t.Errorf("read-only is %q", v)
		}
		if len(c.VolumeMounts) != 1 || c.VolumeMounts[0].ReadOnly {
			t.Errorf("what is mounted: %v", c.VolumeMounts)
		}
	})
	t.Run("settings and image", func(t *testing.T) {
		set := string(mustRead(t, manifests+"/base/statefulset.yaml"))
		o := patched(t, set, nil, documented(t, "newTag:")+documented(t, "EXTENTD_RATE"))
		c := as[corev1.PodSpec](t, dig(o, "spec", "template", "spec")).Containers[0]
		if v := setting(&c, "rate"); v != "200" || setting(&c, "tokens") == "" {
			t.Errorf("the variables are %v", c.Env)
		}
		if c.Image != "registry.example/extentd:v1.0.0" {
			t.Errorf("the image is %s", c.Image)
		}
	})
}
