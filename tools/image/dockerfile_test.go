package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// An instruction is a line of a Dockerfile.
type instruction struct{ name, args string }

// lastStage are the instructions behind the last FROM of the Dockerfile.
func lastStage(t *testing.T) []instruction {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(source, "Dockerfile"))
	if err != nil {
		t.Fatal(err)
	}
	var stage []instruction
	for line := range strings.Lines(strings.ReplaceAll(string(text), "\\\n", " ")) {
		name, args, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch {
		case name == "" || strings.HasPrefix(name, "#"):
		case name == "FROM":
			stage = []instruction{{name, args}}
		default:
			stage = append(stage, instruction{name, strings.Join(strings.Fields(args), " ")})
		}
	}
	return stage
}

// The Dockerfile and this program must make the same image.
func TestDockerfile(t *testing.T) {
	c := config(version)
	var ports []string
	for port := range c.ExposedPorts {
		ports = append(ports, strings.TrimSuffix(port, "/tcp"))
	}
	list := func(args []string) string {
		text, err := json.Marshal(args)
		if err != nil {
			t.Fatal(err)
		}
		return strings.ReplaceAll(string(text), `","`, `", "`)
	}
	want := []instruction{
		{"FROM", "scratch"},
		{"COPY", "--from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/"},
		{"COPY", "--from=build /src/LICENSE /"},
		{"COPY", "--from=build /out/extentd /"},
		{"COPY", "--from=build --chown=" + c.User + " /out/images /images"},
		{"USER", c.User},
		{"EXPOSE", strings.Join(ports, " ")},
		{"ENTRYPOINT", list(c.Entrypoint)},
		{"CMD", list(c.Cmd)},
	}
	var got []instruction
	labels := map[string]string{}
	for _, i := range lastStage(t) {
		switch i.name {
		case "ARG":
		case "LABEL":
			for _, pair := range strings.Split(i.args, `" `) {
				key, value, _ := strings.Cut(pair, "=")
				labels[key] = strings.ReplaceAll(strings.Trim(value, `"`), "$VERSION", version)
			}
		default:
			got = append(got, i)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("the last stage of the Dockerfile is\n%v\nwant\n%v", got, want)
	}
	for key, value := range c.Labels {
		if labels[key] != value {
			t.Errorf("label %s is %q in the Dockerfile, want %q", key, labels[key], value)
		}
	}
	if len(labels) != len(c.Labels) {
		t.Errorf("the Dockerfile has the labels %v, want %v", labels, c.Labels)
	}
}
