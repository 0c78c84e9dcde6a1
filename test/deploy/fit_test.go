package deploy

import (
	"fmt"
	"os/exec"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// flagsOf are the flags of a verb, as the binary says.
func flagsOf(t *testing.T, verb string) []string {
	t.Helper()
	out, err := exec.Command(program, verb, "--help").Output()
	if err != nil || !strings.Contains(string(out), "extentd "+verb) { // help of another is that of none
		t.Fatalf("extentd %s --help: %v\n%s", verb, err, out)
	}
	var flags []string
	for _, m := range regexp.MustCompile(`(?m)^ +(?:-\w, |    )--([a-z0-9-]+)`).FindAllStringSubmatch(string(out), -1) {
		flags = append(flags, m[1])
	}
	return flags
}

// Every flag and variable is one that the binary knows.
func TestFlags(t *testing.T) {
	known := map[string][]string{}
	each(t, func(t *testing.T, p pod) {
		for _, c := range p.containers() {
			if len(c.Args) == 0 || c.Command != nil {
				t.Fatalf("%s has no arguments, or a command of its own", show(&c))
			}
			verb := c.Args[0]
			if known[verb] == nil {
				known[verb] = flagsOf(t, verb)
			}
			for _, arg := range c.Args[1:] {
				name, isFlag := strings.CutPrefix(arg, "--")
				name, _, _ = strings.Cut(name, "=")
				if isFlag && !slices.Contains(known[verb], name) {
					t.Errorf("%s: extentd %s has no flag --%s", show(&c), verb, name)
				}
			}
			for _, e := range c.Env {
				flag := strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(e.Name, "EXTENTD_"), "_", "-"))
				if strings.HasPrefix(e.Name, "EXTENTD_") && !slices.Contains(known[verb], flag) {
					t.Errorf("%s: %s is no setting of extentd %s", show(&c), e.Name, verb)
				}
			}
		}
	})
	if flags := known["serve"]; !slices.Contains(flags, "listen") || slices.Contains(flags, "no-such-flag") {
		t.Errorf("the flags of serve are %v", flags)
	}
}

// portOf is the number of the port that a probe or a service means, 0 for none.
func portOf(c *corev1.Container, port intstr.IntOrString) int32 {
	for _, has := range c.Ports {
		if port.Type == intstr.String && has.Name == port.StrVal || port.Type == intstr.Int && has.ContainerPort == port.IntVal {
			return has.ContainerPort
		}
	}
	return 0
}

// Ports that are named are those that are listened on, and probes lead where they
// are answered.
func TestPorts(t *testing.T) {
	each(t, func(t *testing.T, p pod) {
		c := p.server()
		if c == nil {
			return
		}
		listens := map[string]string{"api": setting(c, "listen"), "admin": setting(c, "admin-listen")}
		for _, port := range c.Ports {
			if want := fmt.Sprintf(":%d", port.ContainerPort); listens[port.Name] != want {
				t.Errorf("port %s is %s, and it listens on %q", port.Name, want, listens[port.Name])
			}
		}
		for name, probe := range map[string]*corev1.Probe{"/readyz": c.ReadinessProbe, "/healthz": c.LivenessProbe} {
			if probe == nil || probe.HTTPGet == nil {
				continue
			}
			if probe.HTTPGet.Path != name || probe.HTTPGet.Port.StrVal != "admin" || portOf(c, probe.HTTPGet.Port) == 0 {
				t.Errorf("a probe asks %s of port %s, want %s of admin", probe.HTTPGet.Path, &probe.HTTPGet.Port, name)
			}
		}
		if c.ReadinessProbe == nil {
			t.Error("nothing asks whether it is ready")
		}
		if loopback := listens["api"] == "" || strings.HasPrefix(listens["api"], "unix:"); loopback &&
			(c.ReadinessProbe.Exec == nil || c.StartupProbe == nil || c.StartupProbe.Exec == nil || len(c.Ports) > 0) {
			t.Error("it is not reached from outside, and is probed there")
		}
		for _, s := range p.of("Service") {
			service := as[corev1.Service](t, s)
			if selector, _ := dig(s, "spec", "selector").(object); !selects(selector, p.labels()) {
				t.Errorf("the service %s does not select the pods", service.Name)
			}
			for _, port := range service.Spec.Ports {
				if portOf(c, port.TargetPort) != port.Port {
					t.Errorf("the service %s has %d for %s", service.Name, port.Port, &port.TargetPort)
				}
			}
		}
	})
}

// What selects something finds it.
func TestSelectors(t *testing.T) {
	for _, p := range podsOf(t, manifests+"/examples/production") {
		for _, n := range p.of("NetworkPolicy") {
			if s, _ := dig(n, "spec", "podSelector", "matchLabels").(object); !selects(s, p.labels()) {
				t.Error("the network policy is for other pods")
			}
			for _, rule := range list(n, "spec", "ingress") {
				for _, port := range list(rule, "ports") {
					number := as[intstr.IntOrString](t, dig(port, "port"))
					if portOf(p.server(), number) == 0 {
						t.Errorf("the network policy lets through to %s, where nobody listens", &number)
					}
				}
			}
		}
		for _, m := range p.of("ServiceMonitor") {
			found := 0
			for _, s := range p.of("Service") {
				labels, _ := dig(s, "metadata", "labels").(object)
				if selector, _ := dig(m, "spec", "selector", "matchLabels").(object); !selects(selector, labels) {
					continue
				}
				for _, endpoint := range list(m, "spec", "endpoints") {
					for _, port := range list(s, "spec", "ports") {
						if text(port, "name") == text(endpoint, "port") {
							found++
						}
					}
				}
			}
			if found != 1 {
				t.Errorf("the service monitor finds %d ports, want 1", found)
			}
		}
		for _, b := range p.of("PodDisruptionBudget") {
			if s, _ := dig(b, "spec", "selector", "matchLabels").(object); !selects(s, p.labels()) {
				t.Error("the disruption budget is for other pods")
			}
		}
		if s, _ := dig(p.workload, "spec", "selector", "matchLabels").(object); !selects(s, p.labels()) {
			t.Error("the workload does not select its own pods")
		}
		if p.named("Service", text(p.workload, "spec", "serviceName")) == nil {
			t.Error("the service that names pods is missing")
		}
	}
}

// A server that is told to end has the time that it takes.
func TestTimeToEnd(t *testing.T) {
	each(t, func(t *testing.T, p pod) {
		c := p.server()
		if c == nil {
			return
		}
		left := 30 * time.Second // what Kubernetes gives
		if s := p.spec.TerminationGracePeriodSeconds; s != nil {
			left = time.Duration(*s) * time.Second
		}
		for flag, by := range map[string]time.Duration{"drain-delay": 0, "grace": 10 * time.Second} {
			if s := setting(c, flag); s != "" {
				var err error
				if by, err = time.ParseDuration(s); err != nil {
					t.Fatal(err)
				}
			}
			left -= by
		}
		if left < 15*time.Second {
			t.Errorf("images have %v to be closed in", left)
		}
	})
}

// A server that keeps within its budget keeps within the pod's limit.
func TestMemory(t *testing.T) {
	each(t, func(t *testing.T, p pod) {
		c := p.server()
		if c == nil {
			return
		}
		budget, err := resource.ParseQuantity(strings.TrimSuffix(setting(c, "max-memory"), "B"))
		if err != nil {
			t.Fatalf("max-memory is %q: %v", setting(c, "max-memory"), err)
		}
		if limit := c.Resources.Limits.Memory().Value(); budget.Value()*3/2 > limit {
			t.Errorf("the limit is %d, less than half as much again as the budget, %d", limit, budget.Value())
		}
		if request := c.Resources.Requests.Memory().Value(); request < budget.Value() {
			t.Errorf("the pod asks for %d, less than the budget, %d", request, budget.Value())
		}
	})
}

// Every volume that is mounted is there, and so is every file that is named.
func TestVolumes(t *testing.T) {
	each(t, func(t *testing.T, p pod) {
		volumes := slices.Clone(p.claims)
		for _, v := range p.spec.Volumes {
			volumes = append(volumes, v.Name)
		}
		for _, c := range p.containers() {
			var below []string
			for _, m := range c.VolumeMounts {
				below = append(below, m.MountPath)
				if !slices.Contains(volumes, m.Name) {
					t.Errorf("%s: there is no volume %s", show(&c), m.Name)
				}
			}
			for _, d := range c.VolumeDevices {
				below = append(below, path.Dir(d.DevicePath))
				if !slices.Contains(volumes, d.Name) {
					t.Errorf("%s: there is no volume %s", show(&c), d.Name)
				}
			}
			values := slices.Clone(c.Args)
			for _, e := range c.Env {
				values = append(values, e.Value)
			}
			for _, value := range values {
				for _, file := range regexp.MustCompile(`(?:^|[=:])(/[^,]+)`).FindAllStringSubmatch(value, -1) {
					if strings.HasPrefix(file[1], "//") {
						continue // a URL
					}
					if !slices.ContainsFunc(below, func(dir string) bool { return file[1] == dir || strings.HasPrefix(file[1], dir+"/") }) {
						t.Errorf("%s: %s is in no volume", show(&c), file[1])
					}
				}
			}
		}
	})
}
