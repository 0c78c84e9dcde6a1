package nbd

import (
	"crypto/tls"
	"fmt"
	"time"

	"github.com/extentd/extentd/storage"
)

// Defaults of the options, and their bounds.
const (
	DefaultConnections = 4
	DefaultDialTimeout = 30 * time.Second
	DefaultTimeout     = 2 * time.Minute
	DefaultReconnect   = 30 * time.Second
	mostConnections    = 64
)

// Options say what is opened, and how. The URI is required.
type Options struct {
	// URI of the export, as the NBD project defines it: nbd://host[:port]/export,
	// nbd+unix:///export?socket=PATH, and nbds and nbds+unix with TLS. The port
	// is 10809 and the host localhost where none is named. With TLS, tls-hostname
	// is the name that the server's certificate must have, if it is not the host;
	// there are no other parameters.
	URI string
	// TLS is how a server of nbds or nbds+unix is verified, and what is shown
	// to it. Nothing but the request for TLS is said in plain text, and without
	// TLS there is no connection. Not for the schemes without TLS. Default: the
	// system's authorities, no certificate.
	TLS *tls.Config
	// Connections is the most that are made, 1 to 64. More than one only if the
	// server says that they see each other's changes. They are made once there
	// is enough to do. Default: 4.
	Connections int
	// DialTimeout is how long it may take until a connection has been made and
	// negotiated. Default: 30 s.
	DialTimeout time.Duration
	// Timeout is how long the server may send nothing while it owes an answer,
	// or take nothing: then the connection is lost. More than its slowest flush
	// takes. Default: 2 min.
	Timeout time.Duration
	// Reconnect is how long a request waits for a connection when there is
	// none. Default: 30 s.
	Reconnect time.Duration
}

// complete puts in the defaults, and reports an *storage.InvalidError.
func (o *Options) complete() (target, error) {
	if o.Connections == 0 {
		o.Connections = DefaultConnections
	}
	if o.Connections < 0 || o.Connections > mostConnections {
		return target{}, invalid("connections", fmt.Sprintf("is %d, must be 1 to %d", o.Connections, mostConnections))
	}
	for _, d := range []struct {
		field     string
		value     *time.Duration
		otherwise time.Duration
	}{
		{"dial_timeout", &o.DialTimeout, DefaultDialTimeout},
		{"timeout", &o.Timeout, DefaultTimeout},
		{"reconnect", &o.Reconnect, DefaultReconnect},
	} {
		if *d.value == 0 {
			*d.value = d.otherwise
		}
		if *d.value < 0 {
			return target{}, invalid(d.field, fmt.Sprintf("is %v, must be positive", *d.value))
		}
	}
	t, detail := parse(o.URI)
	if detail != "" {
		return target{}, invalid("uri", detail)
	}
	return t, t.secure(o.TLS)
}

func invalid(field, detail string) error { return &storage.InvalidError{Field: field, Detail: detail} }
