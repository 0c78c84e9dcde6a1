package http

import (
	"fmt"
	nethttp "net/http"
	"net/url"
	"strings"

	"github.com/extentd/extentd/storage"
)

// mostRedirects are followed for one request.
const mostRedirects = 5

func redirects(status int) bool {
	switch status {
	case nethttp.StatusMovedPermanently, nethttp.StatusFound, nethttp.StatusSeeOther,
		nethttp.StatusTemporaryRedirect, nethttp.StatusPermanentRedirect:
		return true
	}
	return false
}

// next is where an answer of p redirects to, after that many redirects. What it
// names is not quoted: it may be as secret as the URL. A user in it is dropped,
// and trust that was lost on the way does not come back.
func (p place) next(location string, hops int) (place, error) {
	if hops >= mostRedirects {
		return p, fmt.Errorf("%w: more than %d redirects", storage.ErrRefused, mostRedirects)
	}
	to, err := url.Parse(location)
	if err != nil || location == "" {
		return p, fmt.Errorf("%w: a redirect to nowhere", storage.ErrRefused)
	}
	switch to = p.url.ResolveReference(to); {
	case !web(to):
		return p, fmt.Errorf("%w: a redirect to what is neither http nor https", storage.ErrRefused)
	case p.url.Scheme == "https" && to.Scheme != "https":
		return p, fmt.Errorf("%w: a redirect from https to http", storage.ErrRefused)
	}
	return place{url: bare(to), trust: p.trust && sameHost(p.url, to)}, nil
}

// sameHost reports whether b is the server of a: the same name and port, or the
// https beside its http.
func sameHost(a, b *url.URL) bool {
	if !strings.EqualFold(a.Hostname(), b.Hostname()) {
		return false
	}
	return port(a) == port(b) || port(a) == "80" && port(b) == "443" && b.Scheme == "https"
}

func port(u *url.URL) string {
	switch p := u.Port(); {
	case p != "":
		return p
	case u.Scheme == "https":
		return "443"
	}
	return "80"
}
