package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

const healthTimeout = 5 * time.Second

// A probe asks a running server whether it is ready.
type probe struct {
	listen   string // ADDR, unix:PATH, or the URL that the server printed
	ca       string // a PEM file
	insecure bool
}

func healthCommand() *cobra.Command {
	var p probe
	cmd := &cobra.Command{
		Use:   "health",
		Short: "Ask a running server whether it is ready; for exec probes",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			p.listen = cmp.Or(p.listen, os.Getenv(envPrefix+"ADMIN_LISTEN"), fromListen(), defaultListen)
			return p.ask(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.StringVar(&p.listen, "listen", "", "what the server listens on: `ADDR`, https://ADDR or unix:PATH (default: $EXTENTD_ADMIN_LISTEN, $EXTENTD_LISTEN, or "+defaultListen+")")
	f.StringVar(&p.ca, "ca", "", "trust the authorities in the PEM `FILE` (default: those of the system)")
	f.BoolVar(&p.insecure, "insecure", false, "take any certificate of the server: no more than its readiness is asked for")
	return cmd
}

// fromListen is what the environment says about the server's first address, which
// it tells without the scheme.
func fromListen() string {
	address := os.Getenv(envPrefix + "LISTEN")
	if os.Getenv(envPrefix+"TLS_CERT") != "" && !strings.HasPrefix(address, unixPrefix) {
		return "https://" + cmp.Or(address, defaultListen)
	}
	return address
}

// ask fails unless the server says that it is ready.
func (p *probe) ask(ctx context.Context) error {
	url, transport, err := p.reach()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/readyz", nil)
	if err != nil {
		return err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return err
	}
	if err := resp.Body.Close(); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the server at %s is not ready: %s", p.listen, resp.Status)
	}
	return nil
}

// reach is how the server is asked.
func (p *probe) reach() (url string, transport *http.Transport, err error) {
	transport = &http.Transport{DisableKeepAlives: true} // and no proxy
	if path, isUnix := strings.CutPrefix(p.listen, unixPrefix); isUnix {
		var dialer net.Dialer
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", path)
		}
		return "http://localhost", transport, nil
	}
	scheme, address, found := strings.Cut(p.listen, "://")
	if !found {
		scheme, address = "http", p.listen
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil || scheme != "http" && scheme != "https" {
		return "", nil, fmt.Errorf("listen is %q, must be HOST:PORT, https://HOST:PORT or unix:PATH", p.listen)
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "localhost"
	}
	transport.TLSClientConfig = &tls.Config{InsecureSkipVerify: p.insecure}
	if p.ca != "" {
		text, err := os.ReadFile(p.ca)
		if err != nil {
			return "", nil, fmt.Errorf("ca: %w", err)
		}
		transport.TLSClientConfig.RootCAs = x509.NewCertPool()
		if !transport.TLSClientConfig.RootCAs.AppendCertsFromPEM(text) {
			return "", nil, fmt.Errorf("ca: %s holds no certificate", p.ca)
		}
	}
	return scheme + "://" + net.JoinHostPort(host, port), transport, nil
}
