package deploy

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
)

// restricted says why the restricted Pod Security Standard forbids a pod.
func restricted(t *testing.T, spec *corev1.PodSpec) string {
	t.Helper()
	e, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		t.Fatal(err)
	}
	level := api.LevelVersion{Level: api.LevelRestricted, Version: api.LatestVersion()}
	all := policy.AggregateCheckResults(e.EvaluatePod(level, &metav1.ObjectMeta{}, spec))
	return all.ForbiddenDetail()
}

func TestRestricted(t *testing.T) {
	each(t, func(t *testing.T, p pod) {
		if why := restricted(t, &p.spec); why != "" {
			t.Errorf("forbidden: %s", why)
		}
		loose := p.spec.DeepCopy()
		loose.Containers[0].SecurityContext.Capabilities = nil
		if restricted(t, loose) == "" {
			t.Error("a container that keeps its capabilities is not found")
		}
	})
}

// What the standard does not ask for, and the manifests promise.
func TestTightened(t *testing.T) {
	each(t, func(t *testing.T, p pod) {
		if a := p.spec.AutomountServiceAccountToken; a == nil || *a {
			t.Error("a token of the service account is mounted")
		}
		if l := p.spec.EnableServiceLinks; l == nil || *l {
			t.Error("variables are made of services")
		}
		if account := p.named("ServiceAccount", p.spec.ServiceAccountName); account != nil && account["automountServiceAccountToken"] != false {
			t.Errorf("the service account %s mounts tokens", p.spec.ServiceAccountName)
		}
		for _, c := range p.containers() {
			if s := c.SecurityContext; s == nil || s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem {
				t.Errorf("%s: its root file system can be written to", show(&c))
			}
			if c.Image != "extentd" {
				t.Errorf("%s: its image is %s: manifests name no registry and no version", show(&c), c.Image)
			}
			for _, e := range c.Env {
				if e.Name == "EXTENTD_INSECURE" {
					t.Errorf("%s: %s", show(&c), e.Name)
				}
			}
			if c.Resources.Limits.Memory().IsZero() || c.Resources.Requests.Memory().IsZero() || c.Resources.Requests.Cpu().IsZero() {
				t.Errorf("%s: no limit of memory, or no requests", show(&c))
			}
		}
	})
}

// The namespaces of the examples enforce the standard too.
func TestNamespacesEnforce(t *testing.T) {
	for _, dir := range kustomizations(t, "Kustomization") {
		for _, o := range build(t, dir) {
			if text(o, "kind") == "Namespace" && text(o, "metadata", "labels", "pod-security.kubernetes.io/enforce") != "restricted" {
				t.Errorf("%s: the namespace does not enforce the restricted standard", dir)
			}
		}
	}
}
