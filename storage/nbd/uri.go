package nbd

import (
	"crypto/tls"
	"net"
	"net/url"
	"strings"

	"github.com/extentd/extentd/storage/nbd/wire"
)

const defaultPort = "10809"

// A target is what a URI names.
type target struct {
	network, address string // as for net.Dial
	host             string // "" for a Unix socket
	export           string
	tls              *tls.Config // nil without
	hostname         string      // of the certificate, "" if the URI does not say
	encrypted        bool
}

// parse takes a URI apart. What is wrong with it is told without quoting it.
func parse(uri string) (t target, detail string) {
	u, err := url.Parse(uri)
	if err != nil {
		return t, "must be a URI as nbd://host/export"
	}
	unix := false
	switch u.Scheme {
	case "nbd":
	case "nbds":
		t.encrypted = true
	case "nbd+unix":
		unix = true
	case "nbds+unix":
		unix, t.encrypted = true, true
	default:
		return t, "must begin with nbd, nbds, nbd+unix or nbds+unix"
	}
	switch {
	case u.Opaque != "" || u.Path != "" && u.Path[0] != '/':
		return t, "must have // after its scheme"
	case u.User != nil:
		return t, "must have no user: there are no passwords in NBD, and TLS works with certificates"
	case u.Fragment != "":
		return t, "must have no fragment"
	}
	if t.export = strings.TrimPrefix(u.Path, "/"); !wire.ValidString([]byte(t.export)) {
		return t, "has an export's name that no export can have"
	}
	socket, detail := t.query(u.RawQuery)
	switch {
	case detail != "":
		return t, detail
	case unix && u.Host != "":
		return t, "must have no host beside a Unix socket: three slashes after the scheme"
	case unix && socket == "":
		return t, "must have the parameter socket"
	case !unix && socket != "":
		return t, "must have no socket without +unix in its scheme"
	case unix:
		t.network, t.address = "unix", socketAddress(socket)
	default:
		t.network, t.host = "tcp", or(u.Hostname(), "localhost")
		t.address = net.JoinHostPort(t.host, or(u.Port(), defaultPort))
	}
	return t, ""
}

// query reads the parameters. A plus is a plus there, and no space.
func (t *target) query(raw string) (socket, detail string) {
	seen := map[string]bool{}
	for _, field := range strings.FieldsFunc(raw, func(r rune) bool { return r == '&' || r == ';' }) {
		key, value, _ := strings.Cut(field, "=")
		value, err := url.PathUnescape(value)
		switch {
		case err != nil:
			return "", "has a malformed parameter"
		case seen[key]:
			return "", "has a parameter twice"
		case key == "socket" && value != "" && !strings.Contains(value[1:], "\x00"):
			socket = value
		case key == "tls-hostname" && value != "" && t.encrypted:
			t.hostname = value
		default:
			return "", "has a parameter that is not known, or has no such value: socket and, with TLS, tls-hostname are"
		}
		seen[key] = true
	}
	return socket, ""
}

// socketAddress is a socket's name for package net: there a @ stands for the NUL
// that begins an abstract name.
func socketAddress(path string) string {
	switch path[0] {
	case 0:
		return "@" + path[1:]
	case '@':
		return "./" + path
	}
	return path
}

// secure puts in how a server is verified.
func (t *target) secure(config *tls.Config) error {
	if !t.encrypted {
		if config != nil {
			return invalid("tls", "needs a URI that begins with nbds or nbds+unix")
		}
		return nil
	}
	if config == nil {
		config = new(tls.Config)
	}
	t.tls = config.Clone()
	if t.tls.ServerName == "" {
		t.tls.ServerName = or(t.hostname, t.host)
	}
	if t.tls.ServerName == "" && !t.tls.InsecureSkipVerify {
		return invalid("uri", "must have the parameter tls-hostname: a Unix socket has no name that a certificate could have")
	}
	return nil
}

// Name is what the export at a URI is called in mappings and errors: the host and
// the export, "store.example/disk". Where one of them is missing it is the other,
// and "nbd" where both are, or for what is no URI. It never holds a socket's path.
func Name(uri string) string {
	t, detail := parse(uri)
	switch {
	case detail != "" || t.host == "" && t.export == "":
		return "nbd"
	case t.host == "":
		return t.export
	case t.export == "":
		return t.host
	}
	return t.host + "/" + t.export
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}
