package auth

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"go.yaml.in/yaml/v3"
)

// maxFile is the size in bytes of the largest token file.
const maxFile = 1 << 20

// A tokenFile is what a token file says.
type tokenFile struct {
	tokens       []tokenEntry
	certificates []certificate
	claims       []claims
}

type tokenEntry struct {
	name   string
	hash   digest
	grants Grants
}

// parseFile reads a token file. It is strict, and an error names everything that is
// wrong, each with its path. An error holds no hash: somebody may have put the
// token there.
func parseFile(text []byte) (*tokenFile, error) {
	if len(text) > maxFile {
		return nil, fmt.Errorf("is larger than %d bytes", maxFile)
	}
	var doc yaml.Node
	in := yaml.NewDecoder(bytes.NewReader(text))
	if err := in.Decode(&doc); errors.Is(err, io.EOF) {
		return nil, errors.New("is empty")
	} else if err != nil {
		return nil, err
	}
	if err := in.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, errors.New("holds more than one document")
	}
	var f tokenFile
	var d decoder
	d.object("", doc.Content[0], fields{
		"tokens":       func(at string, n *yaml.Node) { d.list(at, n, f.addToken(&d)) },
		"certificates": func(at string, n *yaml.Node) { d.list(at, n, f.addCertificate(&d)) },
		"claims":       func(at string, n *yaml.Node) { d.list(at, n, f.addClaims(&d)) },
	})
	return &f, d.err()
}

func (f *tokenFile) addToken(d *decoder) func(at string, n *yaml.Node) {
	names, hashes := map[string]string{}, map[string]string{}
	return func(at string, n *yaml.Node) {
		var e tokenEntry
		d.object(at, n, fields{
			"name":   func(at string, n *yaml.Node) { e.name = d.name(at, n, names) },
			"sha256": func(at string, n *yaml.Node) { e.hash = d.hash(at, n, hashes) },
			"grants": func(at string, n *yaml.Node) { e.grants = d.grants(at, n) },
		}, "name", "sha256", "grants")
		f.tokens = append(f.tokens, e)
	}
}

func (f *tokenFile) addCertificate(d *decoder) func(at string, n *yaml.Node) {
	names, who := map[string]string{}, map[string]string{}
	return func(at string, n *yaml.Node) {
		var e certificate
		given := 0
		d.object(at, n, fields{
			"name":    func(at string, n *yaml.Node) { e.name = d.name(at, n, names) },
			"subject": func(at string, n *yaml.Node) { given++; e.subject = d.once(at, n, "subject", who) },
			"san":     func(at string, n *yaml.Node) { given++; e.san = d.once(at, n, "san", who) },
			"grants":  func(at string, n *yaml.Node) { e.grants = d.grants(at, n) },
		}, "name", "grants")
		if given != 1 {
			d.add(at, "must have either subject or san")
		}
		f.certificates = append(f.certificates, e)
	}
}

func (f *tokenFile) addClaims(d *decoder) func(at string, n *yaml.Node) {
	names := map[string]string{}
	return func(at string, n *yaml.Node) {
		var e claims
		d.object(at, n, fields{
			"name":   func(at string, n *yaml.Node) { e.name = d.name(at, n, names) },
			"match":  func(at string, n *yaml.Node) { e.match = d.match(at, n) },
			"grants": func(at string, n *yaml.Node) { e.grants = d.grants(at, n) },
		}, "name", "match", "grants")
		f.claims = append(f.claims, e)
	}
}

const maxName = 64

// name is that of an entry, which stands in logs.
func (d *decoder) name(at string, n *yaml.Node, taken map[string]string) string {
	name := d.text(at, n)
	for i := range len(name) {
		c := name[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case i > 0 && strings.IndexByte("._@-", c) >= 0:
		default:
			d.add(at, "must be letters, digits and . _ @ -, a letter or digit first")
			return ""
		}
	}
	if len(name) > maxName {
		d.add(at, "is longer than %d", maxName)
		return ""
	}
	d.unique(at, name, taken)
	return name
}

// once is a text that no other entry may have.
func (d *decoder) once(at string, n *yaml.Node, what string, taken map[string]string) string {
	text := d.text(at, n)
	if text != "" {
		d.unique(at, what+" "+text, taken)
	}
	return text
}

func (d *decoder) unique(at, text string, taken map[string]string) {
	if text == "" {
		return
	}
	if first, twice := taken[text]; twice {
		d.add(at, "is the same as %s", first)
		return
	}
	taken[text] = at
}

func (d *decoder) hash(at string, n *yaml.Node, taken map[string]string) digest {
	text := d.text(at, n)
	sum, err := hex.DecodeString(text)
	switch {
	case text == "":
		return digest{}
	case err != nil || len(sum) != len(digest{}):
		d.add(at, "must be %d hex digits: the SHA-256 of the token", 2*len(digest{}))
		return digest{}
	case digest(sum) == digestOf(""):
		d.add(at, "is that of an empty token")
		return digest{}
	case digest(sum) == digestOf("\n"):
		d.add(at, "is that of an empty line")
		return digest{}
	}
	d.unique(at, string(sum), taken)
	return digest(sum)
}

func (d *decoder) grants(at string, n *yaml.Node) Grants {
	var all Grants
	d.list(at, n, func(at string, n *yaml.Node) {
		var g Grant
		d.object(at, n, fields{
			"verbs": func(at string, n *yaml.Node) {
				d.some(at, n, func(at string, n *yaml.Node) {
					v, err := ParseVerbs([]string{d.text(at, n)})
					if err != nil {
						d.add(at, "must be one of %s", All.list())
					}
					g.Verbs |= v
				})
			},
			"images": func(at string, n *yaml.Node) {
				d.some(at, n, func(at string, n *yaml.Node) { g.Images = append(g.Images, d.pattern(at, n)) })
			},
		}, "verbs", "images")
		all = append(all, g)
	})
	return all
}

// pattern is one of image names.
func (d *decoder) pattern(at string, n *yaml.Node) string {
	text := d.text(at, n)
	if _, err := path.Match(text, ""); err != nil {
		d.add(at, "is no pattern: a [ or a \\ has no end")
	} else if strings.Contains(text, "/") {
		d.add(at, "has a slash, which no image's name has")
	}
	return text
}
