package main

import (
	"cmp"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/extentd/extentd/client"
	"github.com/extentd/extentd/service"
)

// imagesPath is where a server has its images.
const imagesPath = "/v1/images"

// remoteFlags say how servers are spoken to.
type remoteFlags struct {
	tokenFile string
	ticket    string
	ca        string
	cert, key string
}

func (f *remoteFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.tokenFile, "token-file", "", "authenticate with the token in `FILE`, read again when it changes (default: $"+envPrefix+"TOKEN)")
	cmd.Flags().StringVar(&f.ticket, "ticket", "", "authenticate with a `TICKET`; a URL may hold one as ?ticket=, too")
	cmd.Flags().StringVar(&f.ca, "ca", "", "trust servers that have a certificate of an authority in the PEM `FILE` (default: the system's)")
	cmd.Flags().StringVar(&f.cert, "cert", "", "show servers the certificate in the PEM `FILE`")
	cmd.Flags().StringVar(&f.key, "key", "", "its key, in the PEM `FILE`")
}

// A remoteURL names a server, or an image of one. What authenticates is not shown.
type remoteURL struct {
	server string // as client.Options want it, without a ticket
	image  string // "" for the server itself
	full   bool   // the image is named with the path of the API
	ticket string
}

// isRemote reports whether an argument is a URL of a server.
func isRemote(arg string) bool {
	for _, scheme := range []string{"http://", "https://", "http+unix://"} {
		if strings.HasPrefix(strings.ToLower(arg), scheme) {
			return true
		}
	}
	return false
}

// parseRemote takes a URL apart: http(s)://HOST[/PREFIX]/NAME, or the same with the
// path of the API, and http+unix:///NAME?socket=PATH. No error quotes it.
func parseRemote(arg string) (remoteURL, error) {
	u, err := url.Parse(arg)
	if err != nil || u.Opaque != "" {
		return remoteURL{}, errors.New("a URL that cannot be read")
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil || u.User != nil || u.Fragment != "" {
		return remoteURL{}, errors.New("a URL with a user, a fragment, or parameters that cannot be read")
	}
	r := remoteURL{ticket: query.Get("ticket")}
	socket := query.Get("socket")
	for key, values := range query {
		if key != "ticket" && key != "socket" || len(values) != 1 {
			return remoteURL{}, errors.New("a URL has the parameter ticket, and with http+unix socket, and no others")
		}
	}
	prefix, rest, found := cutLast(u.Path, imagesPath)
	if !found {
		at := strings.LastIndexByte(u.Path, '/') + 1
		prefix, rest = strings.TrimSuffix(u.Path[:at], "/"), u.Path[at:]
	}
	r.full = found
	r.image = strings.TrimSuffix(strings.Trim(rest, "/"), "/data")
	if r.image != "" && !service.ValidName(r.image) {
		return remoteURL{}, fmt.Errorf("%q cannot be an image's name", r.image)
	}
	switch unix := u.Scheme == "http+unix"; {
	case unix && (socket == "" || u.Host != "" || prefix != ""):
		return remoteURL{}, errors.New("a URL of http+unix is as http+unix:///NAME?socket=PATH")
	case unix:
		r.server = "unix:" + socket
	case socket != "" || u.Host == "":
		return remoteURL{}, errors.New("a URL needs a host, and no socket without http+unix")
	default:
		r.server = u.Scheme + "://" + u.Host + prefix
	}
	return r, nil
}

// cutLast cuts a path around the last place of what is a whole part of it.
func cutLast(path, part string) (before, after string, found bool) {
	at := strings.LastIndex(path, part)
	if at < 0 || len(path) > at+len(part) && path[at+len(part)] != '/' {
		return path, "", false
	}
	return path[:at], path[at+len(part):], true
}

// String is the URL without what authenticates.
func (r remoteURL) String() string {
	switch path, unix := strings.CutPrefix(r.server, "unix:"); {
	case unix:
		return "http+unix:///" + r.image + "?socket=" + url.QueryEscape(path)
	case r.image == "":
		return r.server
	}
	return r.server + imagesPath + "/" + r.image
}

// dial prepares to speak to the server. connections is how many requests there are
// at a time.
func (f *remoteFlags) dial(r remoteURL, connections int) (*client.Server, error) {
	opt := client.Options{
		URL:         r.server,
		TokenFile:   f.tokenFile,
		Ticket:      cmp.Or(r.ticket, f.ticket),
		CAFile:      f.ca,
		CertFile:    f.cert,
		KeyFile:     f.key,
		Connections: connections + 2,
		UserAgent:   "extentd/" + buildVersion(),
	}
	if opt.TokenFile == "" {
		opt.Token = os.Getenv(envPrefix + "TOKEN")
	}
	return client.Dial(opt)
}

// withRemote runs use on the image that a URL names.
func (f *remoteFlags) withRemote(arg string, use func(r remoteURL, disk *client.Disk) error) error {
	r, err := parseRemote(arg)
	if err == nil && r.image == "" {
		err = errors.New("the URL names a server and no image")
	}
	if err != nil {
		return err
	}
	server, err := f.dial(r, 1)
	if err != nil {
		return err
	}
	defer server.Close()
	if err := use(r, server.Disk(r.image)); err != nil {
		return fmt.Errorf("%s: %w", r, err)
	}
	return nil
}
