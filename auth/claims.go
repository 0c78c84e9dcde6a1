package auth

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// claims is an entry for JWTs: all that it names must be in the JWT.
type claims struct {
	name   string
	match  map[string]want
	grants Grants
	proof  proof
}

// A want is what a claim must be: true or false, or a text in which "*" stands for
// any characters, or none. Nothing else in it is special, and it is for the whole of
// the claim: claims are URLs and paths, whose "?" and "[" nobody expects to be more
// than themselves.
type want struct {
	boolean bool // text is "true" or "false"
	text    string
}

// match reads the claims that an entry is for.
func (d *decoder) match(at string, n *yaml.Node) map[string]want {
	if !d.is(at, n, yaml.MappingNode, "a mapping of claims") {
		return nil
	}
	all := map[string]want{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		path := join(at, shown(key))
		if _, twice := all[key.Value]; twice {
			d.add(path, "is given twice")
			continue
		}
		if key.Kind != yaml.ScalarNode || key.Value == "" || key.ShortTag() == "!!merge" {
			d.add(path, "is no name of a claim")
			continue
		}
		w := want{text: d.text(path, value)}
		switch tag := value.ShortTag(); {
		case value.Kind != yaml.ScalarNode || tag == "!!str" || tag == "!!null":
		case tag == "!!bool":
			// YAML has other spellings than JSON.
			w = want{boolean: true, text: strings.ToLower(value.Value)}
		default:
			d.add(path, "must be a text or true or false; a number is in quotes")
		}
		all[key.Value] = w
	}
	if len(all) == 0 {
		d.add(at, "is empty: it would be for everybody")
	}
	return all
}

// text stands for what is wanted, whatever its order in the file.
func (c *claims) text() string {
	var b strings.Builder
	for _, key := range slices.Sorted(maps.Keys(c.match)) {
		fmt.Fprintf(&b, "%q %t %q\n", key, c.match[key].boolean, c.match[key].text)
	}
	return b.String()
}

// matches reports whether everything is as the entry wants it. A claim is a text, or
// a boolean, or a list of which one is enough.
func (c *claims) matches(jwt map[string]any) bool {
	for key, w := range c.match {
		is, there := jwt[key]
		if !there || !w.matches(is) {
			return false
		}
	}
	return len(c.match) > 0
}

func (w want) matches(is any) bool {
	switch v := is.(type) {
	case string:
		return !w.boolean && like(w.text, v)
	case bool:
		return w.boolean && w.text == fmt.Sprint(v)
	case []any:
		return slices.ContainsFunc(v, func(e any) bool {
			_, nested := e.([]any)
			return !nested && w.matches(e)
		})
	case json.Number, map[string]any, nil:
	}
	return false
}

// like reports whether the pattern is for the whole of text. It takes a time that is
// at most the product of their lengths.
func like(pattern, text string) bool {
	parts := strings.Split(pattern, "*")
	if len(parts) == 1 {
		return pattern == text
	}
	first, last := parts[0], parts[len(parts)-1]
	if len(text) < len(first)+len(last) || !strings.HasPrefix(text, first) || !strings.HasSuffix(text, last) {
		return false
	}
	text = text[len(first) : len(text)-len(last)]
	for _, part := range parts[1 : len(parts)-1] {
		at := strings.Index(text, part)
		if at < 0 {
			return false
		}
		text = text[at+len(part):]
	}
	return true
}
