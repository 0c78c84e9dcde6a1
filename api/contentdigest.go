package api

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"fmt"
	"hash"
	"io"
	"net/http"
	"strconv"
	"strings"
)

const contentDigest = "Content-Digest"

// A digestAlgorithm is one of RFC 9530.
type digestAlgorithm struct {
	name string
	make func() hash.Hash
}

// digestAlgorithms are those that are known. The others of the registry are not fit
// for more than chance.
func digestAlgorithms() [2]digestAlgorithm {
	return [...]digestAlgorithm{{"sha-256", sha256.New}, {"sha-512", sha512.New}}
}

// A bodyDigest compares what is read of a body with what its Content-Digest says.
type bodyDigest struct {
	body    io.ReadCloser
	trailer http.Header // where the digests come after the body; nil: they came before
	sums    [2]hash.Hash
	want    [2][]byte
}

// newBodyDigest takes the body of a request over if that has a Content-Digest, or
// announces one as a trailer. nil: there is none.
func newBodyDigest(r *http.Request) (*bodyDigest, error) {
	given := r.Header[contentDigest]
	_, trails := r.Trailer[contentDigest]
	if len(given) == 0 && !trails {
		return nil, nil
	}
	d := &bodyDigest{body: r.Body}
	if len(given) > 0 {
		if err := d.expect(given); err != nil {
			return nil, err
		}
	}
	if trails {
		d.trailer = r.Trailer
	}
	for i, a := range digestAlgorithms() {
		if trails || d.want[i] != nil {
			d.sums[i] = a.make()
		}
	}
	r.Body = d
	return d, nil
}

// expect reads the field. One that has nothing to compare with is refused, as its
// sender would take it for compared.
func (d *bodyDigest) expect(lines []string) error {
	members, ok := fieldDictionary(lines)
	if !ok {
		return invalid(contentDigest, ruleSyntax, "must be a dictionary of digests, as RFC 9530 says")
	}
	known := false
	for i, a := range digestAlgorithms() {
		text, given := members[a.name]
		if !given {
			continue
		}
		known = true
		digest, ok := byteSequence(text)
		if !ok || len(digest) != a.make().Size() {
			return invalid(contentDigest, ruleSyntax, "has no digest of "+a.name+" where it says so")
		}
		if d.want[i] != nil && !bytes.Equal(d.want[i], digest) { // header and trailer
			return invalid(contentDigest, ruleConflict, "has two digests of "+a.name)
		}
		d.want[i] = digest
	}
	if !known {
		return invalid(contentDigest, ruleValue, "has neither sha-256 nor sha-512")
	}
	return nil
}

// Read reads the body.
func (d *bodyDigest) Read(p []byte) (int, error) {
	n, err := d.body.Read(p)
	for _, sum := range d.sums {
		if sum != nil {
			_, _ = sum.Write(p[:n]) // never fails
		}
	}
	return n, err
}

// trails reports whether the digests come after the body; of none they do not.
func (d *bodyDigest) trails() bool { return d != nil && d.trailer != nil }

func (d *bodyDigest) Close() error { return d.body.Close() }

// verify compares, when all of the body has been read. written is how much of it
// has been written by then, bytes.
func (d *bodyDigest) verify(written int64) error {
	if d.trailer != nil {
		given := d.trailer[contentDigest]
		if len(given) == 0 {
			return d.broken(ruleRequired, "is announced as a trailer, and is missing", written)
		}
		if err := d.expect(given); err != nil {
			return err
		}
	}
	for i, a := range digestAlgorithms() {
		if d.want[i] == nil {
			continue
		}
		if got := d.sums[i].Sum(nil); !bytes.Equal(got, d.want[i]) {
			return d.broken(ruleDigest, fmt.Sprintf("is not that of the body that came, whose %s is %s", a.name, sequenceOf(got)), written)
		}
	}
	return nil
}

// broken says what is wrong, and what that means for the image.
func (d *bodyDigest) broken(rule, detail string, written int64) error {
	if written == 0 {
		detail += ": nothing has been written"
	} else {
		detail += ": the first " + strconv.FormatInt(written, 10) + " bytes of it have been written"
	}
	return invalid(contentDigest, rule, detail)
}

// ruleDigest: a body is not what its digest says.
const ruleDigest = "digest"

// wantedDigest is what Want-Content-Digest prefers of what is known, nil if nothing.
func wantedDigest(h http.Header) *digestAlgorithm {
	lines := h["Want-Content-Digest"]
	if len(lines) == 0 {
		return nil
	}
	members, ok := fieldDictionary(lines)
	if !ok {
		return nil // a preference that cannot be read is none
	}
	var best *digestAlgorithm
	most := 0
	for _, a := range digestAlgorithms() {
		if n, err := strconv.Atoi(members[a.name]); err == nil && n > most && n <= 10 {
			best, most = &a, n
		}
	}
	return best
}

// fieldDictionary reads a dictionary of structured fields (RFC 9651) as far as
// digests need it: values are texts, without their parameters. The last of several
// members of a name counts.
func fieldDictionary(lines []string) (map[string]string, bool) {
	members := map[string]string{}
	for _, line := range lines {
		for item := range strings.SplitSeq(line, ",") {
			name, value, _ := strings.Cut(strings.Trim(item, " \t"), "=")
			value, _, _ = strings.Cut(value, ";")
			if name == "" || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789_-.*") != "" || value == "" {
				return nil, false
			}
			members[name] = strings.TrimRight(value, " ")
		}
	}
	return members, len(members) > 0
}

// byteSequence reads bytes in base64 between colons.
func byteSequence(text string) ([]byte, bool) {
	if len(text) < 2 || text[0] != ':' || text[len(text)-1] != ':' {
		return nil, false
	}
	b, err := base64.StdEncoding.DecodeString(text[1 : len(text)-1])
	return b, err == nil
}

func sequenceOf(digest []byte) string {
	return ":" + base64.StdEncoding.EncodeToString(digest) + ":"
}
