package deploy

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// A pod is what a workload starts.
type pod struct {
	from     string // the directory, and what starts it
	workload object
	meta     object
	spec     corev1.PodSpec
	claims   []string // volumes that are made for it
	built    []object // everything that was built with it
}

// templates says where a workload has its pod.
var templates = map[string][]string{
	"StatefulSet": {"spec", "template"},
	"Deployment":  {"spec", "template"},
	"Job":         {"spec", "template"},
	"CronJob":     {"spec", "jobTemplate", "spec", "template"},
}

// pods are those of everything that can be built, by directory.
func pods(t *testing.T) []pod {
	t.Helper()
	var all []pod
	for _, dir := range kustomizations(t, "Kustomization") {
		all = append(all, podsOf(t, dir)...)
	}
	return all
}

func podsOf(t *testing.T, dir string) []pod {
	t.Helper()
	var all []pod
	built := build(t, dir)
	for _, o := range built {
		at, has := templates[text(o, "kind")]
		if !has {
			if dig(o, "spec", "template") != nil {
				t.Fatalf("%s: the pods of a %s are not looked at", dir, text(o, "kind"))
			}
			continue
		}
		p := pod{
			from:     strings.TrimPrefix(dir, manifests+"/") + " " + text(o, "kind"),
			workload: o, built: built,
		}
		template := dig(o, at...)
		p.meta, _ = dig(template, "metadata").(object)
		p.spec = as[corev1.PodSpec](t, dig(template, "spec"))
		for _, claim := range list(o, "spec", "volumeClaimTemplates") {
			p.claims = append(p.claims, text(claim, "metadata", "name"))
		}
		all = append(all, p)
	}
	return all
}

// as makes a typed value of decoded JSON; what the type does not know is refused.
func as[T any](t *testing.T, from any) T {
	t.Helper()
	var v T
	asJSON, err := json.Marshal(from)
	if err == nil {
		err = yaml.UnmarshalStrict(asJSON, &v)
	}
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// each runs a subtest for every pod.
func each(t *testing.T, test func(t *testing.T, p pod)) {
	for _, p := range pods(t) {
		t.Run(p.from, func(t *testing.T) { test(t, p) })
	}
}

// containers are all of a pod, those that start before the others first.
func (p *pod) containers() []corev1.Container {
	return slices.Concat(p.spec.InitContainers, p.spec.Containers)
}

// server is the container that serves, nil for none.
func (p *pod) server() *corev1.Container {
	for _, c := range p.containers() {
		if len(c.Args) > 0 && c.Args[0] == "serve" {
			return &c
		}
	}
	return nil
}

// setting is a setting of a container, as its flag or its variable has it.
func setting(c *corev1.Container, flag string) string {
	for _, arg := range c.Args {
		if value, ok := strings.CutPrefix(arg, "--"+flag+"="); ok {
			return value
		}
	}
	name := "EXTENTD_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
	for _, e := range c.Env {
		if e.Name == name {
			return e.Value
		}
	}
	return ""
}

// selects reports whether labels have all that a selector wants.
func selects(selector, labels object) bool {
	for key, value := range selector {
		if labels[key] != value {
			return false
		}
	}
	return len(selector) > 0
}

// named is the object of a kind and a name, nil for none.
func (p *pod) named(kind, name string) object {
	for _, o := range p.built {
		if text(o, "kind") == kind && text(o, "metadata", "name") == name {
			return o
		}
	}
	return nil
}

// of are the objects of a kind.
func (p *pod) of(kind string) []object {
	return slices.DeleteFunc(slices.Clone(p.built), func(o object) bool { return text(o, "kind") != kind })
}

func (p *pod) labels() object {
	labels, _ := dig(p.meta, "labels").(object)
	return maps.Clone(labels)
}

func show(c *corev1.Container) string { return fmt.Sprintf("container %s", c.Name) }
