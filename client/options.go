package client

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"
)

// Defaults of the options.
const (
	DefaultDialTimeout = 30 * time.Second
	DefaultTimeout     = 2 * time.Minute
	DefaultPatience    = time.Minute
	DefaultConnections = 16
)

// Options say which server is meant, and how one speaks to it. The URL is required.
type Options struct {
	// URL of the server: http://host:port, https://host, or unix:/path of its
	// socket. It may have a path, where a proxy puts the server below one, and
	// ?ticket= in place of Ticket. It has no user and password.
	URL string
	// Token authenticates: a token, a JWT or a ticket. Default: TokenFile.
	Token string
	// TokenFile holds it, white space around it apart. It is read again when it has
	// changed, so that tokens can be rotated. Default: no authentication.
	TokenFile string
	// Ticket is used in place of both. Default: the URL's, or none.
	Ticket string
	// CAFile holds the authorities for the server's certificate, PEM. Default: the
	// system's.
	CAFile string
	// CertFile and KeyFile hold the certificate that is shown to the server, PEM.
	// They are read with each new connection. Default: none.
	CertFile, KeyFile string
	// DialTimeout is how long making a connection may take. Default: 30 s.
	DialTimeout time.Duration
	// Timeout is how long a server may send nothing while it owes an answer, and
	// take nothing while it is sent something. How long an answer takes as a whole
	// has no bound but the context. Default: 2 min.
	Timeout time.Duration
	// Patience is for how long what fails in passing is tried again: see Server.
	// Default: 1 min; negative: nothing is.
	Patience time.Duration
	// Connections is how many idle ones are kept. Default: 16.
	Connections int
	// UserAgent says who asks. Default: "extentd-client".
	UserAgent string
}

// complete puts in the defaults, takes the ticket out of the URL, and says what the
// server's address is. No error quotes the URL.
func (o *Options) complete() (base, socket string, err error) {
	o.DialTimeout = cmp.Or(o.DialTimeout, DefaultDialTimeout)
	o.Timeout = cmp.Or(o.Timeout, DefaultTimeout)
	o.Patience = cmp.Or(o.Patience, DefaultPatience)
	o.Connections = cmp.Or(o.Connections, DefaultConnections)
	o.UserAgent = cmp.Or(o.UserAgent, "extentd-client")
	if o.DialTimeout < 0 || o.Timeout < 0 || o.Connections < 0 {
		return "", "", errors.New("client: a negative timeout, or number of connections")
	}
	if (o.CertFile == "") != (o.KeyFile == "") {
		return "", "", errors.New("client: a certificate and its key come together")
	}
	if o.Token != "" && o.TokenFile != "" {
		return "", "", errors.New("client: a token is given, and a file of one too")
	}
	text, query, _ := strings.Cut(o.URL, "?")
	if err := o.query(query); err != nil {
		return "", "", err
	}
	if path, unix := strings.CutPrefix(text, "unix:"); unix {
		if path = strings.TrimPrefix(path, "//"); path == "" {
			return "", "", errors.New("client: the URL needs the path of a socket behind its scheme, unix")
		}
		return "http://localhost", path, nil
	}
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.Opaque != "" {
		return "", "", errors.New("client: the URL must be as http://host:port, https://host or unix:/path")
	}
	if u.User != nil || u.Fragment != "" {
		return "", "", errors.New("client: the URL must have neither user nor fragment")
	}
	return strings.TrimRight(u.String(), "/"), "", nil
}

// query takes the only parameter that there is.
func (o *Options) query(raw string) error {
	if raw == "" {
		return nil
	}
	values, err := url.ParseQuery(raw)
	if err != nil || len(values) != 1 || len(values["ticket"]) != 1 {
		return errors.New("client: the URL may have one parameter, ticket")
	}
	o.Ticket = cmp.Or(o.Ticket, values.Get("ticket"))
	return nil
}

// shown is a server's address for people.
func shown(base, socket string) string {
	if socket != "" {
		return "unix:" + socket
	}
	return base
}

// dialError tells of a connection without the addresses of this machine.
func dialError(where string, err error) error {
	if op, ok := errors.AsType[*net.OpError](err); ok {
		err = op.Err
	}
	return fmt.Errorf("client: connect to %s: %w", where, err)
}
