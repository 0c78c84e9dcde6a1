package http

import (
	"crypto/x509"
	"fmt"
	nethttp "net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/extentd/extentd/storage"
)

// Defaults of the options, and their bounds.
const (
	DefaultTimeout        = 30 * time.Second
	DefaultMaxConnections = 16
	mostConnections       = 1024
)

// Options say what is opened, and how. The URL is required.
type Options struct {
	// URL of the file, http or https. A user and password in it are sent as
	// basic authentication, to its host alone.
	URL string
	// AllowPrivate allows addresses that are not public: loopback, private and
	// shared networks, link-local ones, and the like. Default: they are
	// refused.
	AllowPrivate bool
	// Headers are sent with every request to the URL's host, and after a
	// redirect to no other. Those that make a request what it is (Host, Range,
	// Accept-Encoding, If-Match and so on) are not allowed. Default: none.
	Headers map[string]string
	// CA are the authorities that a server's certificate may come from.
	// Default: the system's.
	CA *x509.CertPool
	// Timeout is how long the server may take to be connected to, to begin an
	// answer, and to send the next piece of it. The whole of a request is
	// bounded by its context alone. Default: 30 s.
	Timeout time.Duration
	// MaxConnections is the most requests under way at a time, and so the most
	// connections to a server; more wait. 1 to 1024. Default: 16.
	MaxConnections int
}

// A place is where a request goes.
type place struct {
	url   *url.URL // without user and fragment
	trust bool     // it may see the operator's headers
}

// complete puts in the defaults, and reports an *storage.InvalidError.
func (o *Options) complete() (place, error) {
	if o.Timeout == 0 {
		o.Timeout = DefaultTimeout
	}
	if o.MaxConnections == 0 {
		o.MaxConnections = DefaultMaxConnections
	}
	switch {
	case o.Timeout < 0:
		return place{}, invalid("timeout", fmt.Sprintf("is %v, must be positive", o.Timeout))
	case o.MaxConnections < 0 || o.MaxConnections > mostConnections:
		return place{}, invalid("max_connections", fmt.Sprintf("is %d, must be 1 to %d", o.MaxConnections, mostConnections))
	}
	u, err := url.Parse(o.URL)
	if err != nil || !web(u) { // the error would quote the URL
		return place{}, invalid("url", "must be an absolute http or https URL")
	}
	return place{url: bare(u), trust: true}, o.checkHeaders(u.User != nil)
}

// web reports whether a URL can be asked for.
func web(u *url.URL) bool {
	return (u.Scheme == "http" || u.Scheme == "https") && u.Hostname() != "" && u.Opaque == ""
}

// bare is the URL without what is not sent.
func bare(u *url.URL) *url.URL {
	b := *u
	b.User, b.Fragment, b.RawFragment = nil, "", ""
	return &b
}

// header is what is sent to the URL's host.
func (o *Options) header() nethttp.Header {
	h := nethttp.Header{"User-Agent": {"extentd"}}
	for name, value := range o.Headers {
		h.Set(name, value)
	}
	if u, err := url.Parse(o.URL); err == nil && u.User != nil {
		password, _ := u.User.Password()
		r := nethttp.Request{Header: h}
		r.SetBasicAuth(u.User.Username(), password)
	}
	return h
}

// reserved are the headers that belong to the request itself.
var reserved = []string{
	"Accept", "Accept-Encoding", "Connection", "Content-Length", "Expect", "Host",
	"If-Match", "If-Modified-Since", "If-None-Match", "If-Range", "If-Unmodified-Since", "Keep-Alive",
	"Proxy-Connection", "Range", "Te", "Trailer", "Transfer-Encoding", "Upgrade",
}

// checkHeaders never quotes a value, which may be secret.
func (o *Options) checkHeaders(user bool) error {
	seen := map[string]bool{}
	for name, value := range o.Headers {
		key := nethttp.CanonicalHeaderKey(name)
		switch {
		case name == "" || strings.ContainsFunc(name, notToken):
			return invalid("headers", fmt.Sprintf("has %q, which is no name of a header", name))
		case strings.ContainsFunc(value, notText):
			return invalid("headers", fmt.Sprintf("has a value of %s that no header can have", key))
		case slices.Contains(reserved, key):
			return invalid("headers", "must not have "+key+": it is part of the request itself")
		case seen[key]:
			return invalid("headers", "has "+key+" twice")
		case user && key == "Authorization":
			return invalid("headers", "must not have Authorization beside a user in the URL")
		}
		seen[key] = true
	}
	return nil
}

func notToken(r rune) bool {
	return r <= ' ' || r > '~' || strings.ContainsRune("\"(),/:;<=>?@[\\]{}", r)
}

func notText(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }

func invalid(field, detail string) error { return &storage.InvalidError{Field: field, Detail: detail} }

// Name is what the file at a URL is called in mappings and errors: its host and
// the last segment of its path, "mirror.example/f.qcow2"; for an image of another
// extentd its name. It is "http" for what is no URL.
func Name(rawURL string) string {
	u, err := url.Parse(rawURL)
	if err != nil || !web(u) {
		return "http"
	}
	p := u.EscapedPath()
	if image, ok := extentdImage(p); ok {
		p = image
	}
	switch last := path.Base(p); last {
	case ".", "/":
		return u.Host
	default:
		return u.Host + "/" + last
	}
}

// extentdImage is what stands before /data in the path of an image that an
// extentd serves.
func extentdImage(escaped string) (image string, ok bool) {
	image, ok = strings.CutSuffix(escaped, "/data")
	slash := strings.LastIndexByte(image, '/')
	return image, ok && slash+1 < len(image) && strings.HasSuffix(image[:slash+1], "/v1/images/")
}
