package http

import (
	"fmt"
	nethttp "net/http"
	"strings"
	"time"

	"github.com/extentd/extentd/storage"
)

// A validator tells the version of the file that was opened from others.
type validator struct {
	etag     string    // strong; "" if there is none
	weak     string    // what a weak one says, without the W/
	modified time.Time // Last-Modified; counts where etag is ""
}

// mostETag bounds what is sent back with every request.
const mostETag = 1024

// newValidator fails where there is none: versions of the file could not be told
// apart, and might be mixed.
func newValidator(h nethttp.Header) (validator, error) {
	var v validator
	v.etag, v.weak = etagOf(h)
	v.modified, _ = nethttp.ParseTime(h.Get("Last-Modified"))
	if v.etag == "" && v.modified.IsZero() {
		return v, fmt.Errorf("%w: the server sends neither a strong ETag nor a Last-Modified, so that a change of the file would go unseen",
			storage.ErrUnsupported)
	}
	return v, nil
}

// etagOf is the ETag of an answer: one of both, or none where there is no good one.
func etagOf(h nethttp.Header) (strong, weak string) {
	lines := h["Etag"]
	if len(lines) != 1 || len(lines[0]) > mostETag {
		return "", ""
	}
	tag, isWeak := strings.CutPrefix(lines[0], "W/")
	if len(tag) < 2 || tag[0] != '"' || tag[len(tag)-1] != '"' || strings.ContainsFunc(tag[1:len(tag)-1], notInETag) {
		return "", ""
	}
	if isWeak {
		return "", tag
	}
	return tag, ""
}

func notInETag(r rune) bool { return r <= ' ' || r == '"' || r == 0x7f }

// condition makes a request one for this version alone.
func (v *validator) condition(h nethttp.Header) {
	if v.etag != "" {
		h["If-Match"] = []string{v.etag}
		return
	}
	h["If-Unmodified-Since"] = []string{v.modified.UTC().Format(nethttp.TimeFormat)}
}

// check looks at the header of an answer all the same: not every server knows
// conditions.
func (v *validator) check(h nethttp.Header) error {
	strong, weak := etagOf(h)
	if v.etag != "" {
		switch strong {
		case v.etag:
			return nil
		case "":
			return fmt.Errorf("%w: an answer without the strong ETag that the file had", storage.ErrUnsupported)
		}
		return fmt.Errorf("%w: the file has another ETag", storage.ErrChanged)
	}
	modified, err := nethttp.ParseTime(h.Get("Last-Modified"))
	switch {
	case err != nil:
		return fmt.Errorf("%w: an answer without the Last-Modified that the file had", storage.ErrUnsupported)
	case !modified.Equal(v.modified):
		return fmt.Errorf("%w: the file has another Last-Modified", storage.ErrChanged)
	case v.weak != "" && strong+weak != "" && strong+weak != v.weak:
		return fmt.Errorf("%w: the file has another ETag", storage.ErrChanged)
	}
	return nil
}

// String is the ETag, or the time.
func (v *validator) String() string {
	if v.etag != "" {
		return v.etag
	}
	return strings.TrimSpace(v.modified.UTC().Format(time.RFC3339) + " " + v.weak)
}
