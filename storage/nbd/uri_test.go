package nbd_test

import (
	"crypto/tls"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/nbd"
)

func TestTargets(t *testing.T) {
	for _, c := range []struct{ uri, network, address, export, hostname string }{
		{"nbd://example.com/disk", "tcp", "example.com:10809", "disk", ""},
		{"nbd://example.com:99", "tcp", "example.com:99", "", ""},
		{"nbd://example.com/", "tcp", "example.com:10809", "", ""},
		{"nbd://example.com//disk", "tcp", "example.com:10809", "/disk", ""},
		{"nbd://example.com/hello%20world", "tcp", "example.com:10809", "hello world", ""},
		{"nbd://example.com/a%2fb/c", "tcp", "example.com:10809", "a/b/c", ""},
		{"nbd://[::1]/d", "tcp", "[::1]:10809", "d", ""},
		{"nbd:///d", "tcp", "localhost:10809", "d", ""},
		{"nbds://example.com/d", "tcp", "example.com:10809", "d", "example.com"},
		{"nbds://example.com/d?tls-hostname=other", "tcp", "example.com:10809", "d", "other"},
		{"nbd+unix:///d?socket=/run/a+b%20c", "unix", "/run/a+b c", "d", ""},
		{"nbd+unix:///?socket=%00abstract", "unix", "@abstract", "", ""},
		{"nbd+unix:///?socket=@file", "unix", "./@file", "", ""},
		{"nbd+unix://?socket=s", "unix", "s", "", ""},
		{"nbds+unix:///d?tls-hostname=h&socket=s", "unix", "s", "d", "h"},
	} {
		network, address, export, hostname, err := nbd.Target(nbd.Options{URI: c.uri})
		if err != nil || network != c.network || address != c.address || export != c.export || hostname != c.hostname {
			t.Errorf("%s: %s, %s, %q, %q, %v", c.uri, network, address, export, hostname, err)
		}
	}
}

func TestInvalid(t *testing.T) {
	const good = "nbd://h/secret"
	for _, c := range []struct {
		field string
		opt   nbd.Options
	}{
		{"uri", nbd.Options{}},
		{"uri", nbd.Options{URI: "secret"}},
		{"uri", nbd.Options{URI: "http://h/secret"}},
		{"uri", nbd.Options{URI: "nbd:secret"}},
		{"uri", nbd.Options{URI: "nbd+vsock://2/secret"}},
		{"uri", nbd.Options{URI: "nbd://h:secret/"}},
		{"uri", nbd.Options{URI: "nbd://secret@h/"}},
		{"uri", nbd.Options{URI: "nbd://h/#secret"}},
		{"uri", nbd.Options{URI: "nbd://h/%00secret"}},
		{"uri", nbd.Options{URI: "nbd://h/%ffsecret"}},
		{"uri", nbd.Options{URI: "nbd://h/" + strings.Repeat("x", 4097)}},
		{"uri", nbd.Options{URI: "nbd://h/?socket=secret"}},
		{"uri", nbd.Options{URI: "nbd://h/?secret=1"}},
		{"uri", nbd.Options{URI: "nbd://h/?tls-hostname=secret"}},
		{"uri", nbd.Options{URI: "nbds://h/?tls-verify-peer=0"}},
		{"uri", nbd.Options{URI: "nbd+unix:///secret"}},
		{"uri", nbd.Options{URI: "nbd+unix://h/?socket=secret"}},
		{"uri", nbd.Options{URI: "nbd+unix:///?socket="}},
		{"uri", nbd.Options{URI: "nbd+unix:///?socket=a&socket=secret"}},
		{"uri", nbd.Options{URI: "nbd+unix:///?socket=secret%00b"}},
		{"uri", nbd.Options{URI: "nbd+unix:///?socket=%zzsecret"}},
		{"uri", nbd.Options{URI: "nbds+unix:///?socket=secret"}},
		{"tls", nbd.Options{URI: good, TLS: new(tls.Config)}},
		{"connections", nbd.Options{URI: good, Connections: -1}},
		{"connections", nbd.Options{URI: good, Connections: 65}},
		{"dial_timeout", nbd.Options{URI: good, DialTimeout: -time.Second}},
		{"timeout", nbd.Options{URI: good, Timeout: -1}},
		{"reconnect", nbd.Options{URI: good, Reconnect: -1}},
	} {
		_, err := nbd.Open(t.Context(), c.opt)
		invalid, ok := errors.AsType[*storage.InvalidError](err)
		if !ok || invalid.Field != c.field || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: %v, want %s", c.opt.URI, err, c.field)
		}
	}
}

func TestName(t *testing.T) {
	for uri, want := range map[string]string{
		"nbd://h:99/disk":            "h/disk",
		"nbds://h":                   "h",
		"nbd+unix:///disk?socket=/s": "disk",
		"nbd+unix:///?socket=/s":     "nbd",
		"what":                       "nbd",
	} {
		if got := nbd.Name(uri); got != want {
			t.Errorf("%s is called %q, want %q", uri, got, want)
		}
	}
}
