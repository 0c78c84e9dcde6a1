package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
)

// ListenConfig says how addresses are listened on.
type ListenConfig struct {
	Cert       string        `koanf:"tls-cert"`
	Key        string        `koanf:"tls-key"`
	ClientCA   string        `koanf:"tls-client-ca"`
	SocketMode string        `koanf:"socket-mode"`
	DrainDelay time.Duration `koanf:"drain-delay"`
	Grace      time.Duration `koanf:"grace"`
}

const (
	defaultSocketMode = "0660"
	defaultGrace      = 10 * time.Second
)

func listenFlags(f *pflag.FlagSet) {
	f.String("tls-cert", "", "speak HTTPS, with the certificate in the PEM `FILE`")
	f.String("tls-key", "", "its key, in the PEM `FILE`")
	f.String("tls-client-ca", "", "know clients by certificates of an authority in the PEM `FILE`; those who have none are refused, unless there is another way to authenticate")
	f.String("socket-mode", defaultSocketMode, "who may connect to unix sockets: the permissions of their files, octal `MODE`")
	f.Duration("drain-delay", 0, "go on serving for `DURATION` after SIGTERM, while /readyz says that it is about to end")
	f.Duration("grace", defaultGrace, "let requests under way end for `DURATION` then, and cut off those that do not")
}

// authenticated reports whether clients have to say who they are.
func (c *Config) authenticated() bool { return c.Auth.Tokens != "" || c.TLS.ClientCA != "" }

// certificateAlone reports whether a client certificate is the only way to do so.
func (c *Config) certificateAlone() bool { return c.TLS.ClientCA != "" && c.Auth.Tokens == "" }

// checkListen refuses what is incomplete or unsafe.
func (c *Config) checkListen() error {
	if err := needs([]need{
		{c.TLS.Cert, "tls-cert", c.TLS.Key, "tls-key"},
		{c.TLS.Key, "tls-key", c.TLS.Cert, "tls-cert"},
		{c.TLS.ClientCA, "tls-client-ca", c.TLS.Cert, "tls-cert"},
	}); err != nil {
		return err
	}
	if _, err := c.TLS.socketMode(); err != nil {
		return err
	}
	for name, d := range map[string]time.Duration{"drain-delay": c.TLS.DrainDelay, "grace": c.TLS.Grace} {
		if d < 0 {
			return fmt.Errorf("%s is %v, must not be negative", name, d)
		}
	}
	if c.AdminListen != "" {
		if _, err := reach("admin-listen", c.AdminListen); err != nil {
			return err
		}
	}
	from, err := reach("listen", c.Listen)
	if err != nil {
		return err
	}
	if from == anywhere && !c.authenticated() && !c.Insecure {
		return fmt.Errorf("listen is %s, which others can reach, and there is no authentication: "+
			"listen on 127.0.0.1 or a unix socket, authenticate (--tokens or --tls-client-ca), "+
			"or give --insecure if everybody who reaches it may read and change every image", c.Listen)
	}
	return c.NBD.check(c.authenticated(), c.Insecure)
}

// A need is that of a flag for another.
type need struct{ has, flag, needs, needed string }

func needs(all []need) error {
	for _, f := range all {
		if f.has != "" && f.needs == "" {
			return fmt.Errorf("%s needs %s", f.flag, f.needed)
		}
	}
	return nil
}

// A reached is who can reach an address.
type reached int

const (
	anywhere reached = iota // by everybody, for all that is known
	thisMachine
	socket // by who may open its file
)

var (
	errAddress  = errors.New("must be HOST:PORT or unix:PATH")
	errAbstract = errors.New("must be a path: nothing guards sockets that have none")
)

// reach says from where an address can be reached.
func reach(flag, address string) (reached, error) {
	path, isUnix := strings.CutPrefix(address, unixPrefix)
	var err error
	switch {
	case isUnix && path == "":
		err = errAddress
	case isUnix && path[0] == '@':
		err = errAbstract
	case isUnix:
		return socket, nil
	default:
		var loopback bool
		if loopback, err = isLoopback(address); loopback {
			return thisMachine, nil
		}
		if err != nil {
			err = fmt.Errorf("%w: %w", errAddress, err)
		}
	}
	if err != nil {
		return anywhere, fmt.Errorf("%s is %q, %w", flag, address, err)
	}
	return anywhere, nil
}

// socketMode is the mode of unix sockets. It is written out in full: YAML reads
// 660 as a decimal number, and 0660 as an octal one that arrives here as 432.
func (c *ListenConfig) socketMode() (fs.FileMode, error) {
	text := cmp.Or(c.SocketMode, defaultSocketMode)
	if !regexp.MustCompile(`^0[0-7]{3}$`).MatchString(text) {
		return 0, fmt.Errorf(`socket-mode is %q, must be four octal digits, the first a 0, and quoted in a configuration file: "0660"`, text)
	}
	mode, err := strconv.ParseUint(text, 8, 32)
	return fs.FileMode(mode), err
}
