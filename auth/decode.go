package auth

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// maxFindings bounds what is said about one file.
const maxFindings = 100

// A decoder walks through YAML, and collects what is wrong with it, each with the
// path of its key. It is strict: no key is ignored or given twice, and nothing is an
// alias of something else.
type decoder struct {
	findings []error
	more     int
}

// fields are what reads the keys of an object.
type fields map[string]func(at string, n *yaml.Node)

func (d *decoder) add(at, format string, args ...any) {
	if len(d.findings) == maxFindings {
		d.more++
		return
	}
	text := fmt.Sprintf(format, args...)
	if at != "" {
		text = at + ": " + text
	}
	d.findings = append(d.findings, errors.New(text))
}

func (d *decoder) err() error {
	if d.more > 0 {
		return errors.Join(append(d.findings, fmt.Errorf("and %d more", d.more))...)
	}
	return errors.Join(d.findings...)
}

// is reports whether n is of the kind.
func (d *decoder) is(at string, n *yaml.Node, kind yaml.Kind, what string) bool {
	switch {
	case n.Kind == yaml.AliasNode:
		d.add(at, "is an alias, which is not taken here")
	case n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null":
		d.add(at, "has no value")
	case n.Kind != kind:
		d.add(at, "must be %s", what)
	default:
		return true
	}
	return false
}

// object reads a mapping, which has no other keys, and those that are required.
func (d *decoder) object(at string, n *yaml.Node, known fields, required ...string) {
	if !d.is(at, n, yaml.MappingNode, "a mapping") {
		return
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		path := join(at, shown(key))
		read := known[key.Value]
		switch {
		case key.Kind != yaml.ScalarNode || read == nil:
			d.add(path, "is unknown, must be one of %s", strings.Join(slices.Sorted(maps.Keys(known)), ", "))
		case seen[key.Value]:
			d.add(path, "is given twice")
		default:
			seen[key.Value] = true
			read(path, value)
		}
	}
	for _, key := range required {
		if !seen[key] {
			d.add(join(at, key), "is missing")
		}
	}
}

// list reads a sequence, which may be empty.
func (d *decoder) list(at string, n *yaml.Node, each func(at string, n *yaml.Node)) {
	if !d.is(at, n, yaml.SequenceNode, "a list") {
		return
	}
	for i, e := range n.Content {
		each(fmt.Sprintf("%s[%d]", at, i), e)
	}
}

// some reads a sequence that is not empty.
func (d *decoder) some(at string, n *yaml.Node, each func(at string, n *yaml.Node)) {
	d.list(at, n, each)
	if n.Kind == yaml.SequenceNode && len(n.Content) == 0 {
		d.add(at, "is empty")
	}
}

// text is a scalar as it is written, whatever YAML takes it for: a hash may look
// like a number. "" if that was a finding.
func (d *decoder) text(at string, n *yaml.Node) string {
	if !d.is(at, n, yaml.ScalarNode, "a text") {
		return ""
	}
	if n.Value == "" {
		d.add(at, "is empty")
	}
	return n.Value
}

func join(at, key string) string {
	if at == "" {
		return key
	}
	return at + "." + key
}

// shown is a key as a finding names it.
func shown(key *yaml.Node) string {
	const most = 40
	if key.Kind != yaml.ScalarNode {
		return "?"
	}
	if len(key.Value) > most {
		return fmt.Sprintf("%q...", key.Value[:most])
	}
	if strings.ContainsFunc(key.Value, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return fmt.Sprintf("%q", key.Value)
	}
	return key.Value
}
