package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/url"
	"os/exec"
	"path/filepath"
	"strings"
)

// networks are the two ways to an NBD server.
var networks = []string{"unix", "tcp"}

// An nbdKind is a way to serve an image over NBD. start returns the image's URI;
// whoever gets it stops the process.
type nbdKind struct {
	name  string
	start func(ctx context.Context, network, image string, writable bool) (uri string, p *process, err error)
}

func (s *setup) nbdExtentd() nbdKind { return nbdKind{"extentd", s.startExtentd} }
func (s *setup) nbdQEMU() nbdKind    { return nbdKind{"qemu-nbd", s.startQEMU} }
func (s *setup) nbdNbdkit() nbdKind  { return nbdKind{"nbdkit file", s.startNbdkit} }

// startExtentd starts an extentd of all images, which closes them soon.
func (s *setup) startExtentd(ctx context.Context, network, image string, _ bool) (string, *process, error) {
	address := "127.0.0.1:0"
	if network == "unix" {
		address = "unix:" + s.socket("extentd")
	}
	e, err := s.serveFresh(ctx, "--idle", "200ms", "--nbd", address)
	if err != nil {
		return "", nil, err
	}
	urls := strings.Fields(e.url) // of HTTP, and of NBD
	u, err := url.Parse(urls[len(urls)-1])
	if err != nil || len(urls) != 2 {
		e.stop()
		return "", nil, fmt.Errorf("extentd listens on %q (%w)", e.url, err)
	}
	u.Path = "/" + image
	return u.String(), e.process, nil
}

func (s *setup) startQEMU(ctx context.Context, network, image string, writable bool) (string, *process, error) {
	args := []string{"-t", "-e", "16", "--discard=unmap", "-f", strings.TrimPrefix(filepath.Ext(image), ".")}
	if !writable {
		args = append(args, "-r")
	}
	return s.startPeer(ctx, "qemu-nbd", network, func(socket, port string) []string {
		if network == "unix" {
			return append(args, "-k", socket, image)
		}
		return append(args, "-b", "127.0.0.1", "-p", port, image)
	})
}

// startNbdkit serves a raw image.
func (s *setup) startNbdkit(ctx context.Context, network, image string, writable bool) (string, *process, error) {
	args := []string{"-f"}
	if !writable {
		args = append(args, "-r")
	}
	return s.startPeer(ctx, "nbdkit", network, func(socket, port string) []string {
		if network == "unix" {
			return append(args, "-U", socket, "file", image)
		}
		return append(args, "-i", "127.0.0.1", "-p", port, "file", image)
	})
}

// startPeer starts a program that serves one image without a name.
func (s *setup) startPeer(ctx context.Context, program, network string, args func(socket, port string) []string) (string, *process, error) {
	address := s.socket(program)
	uri, port := "nbd+unix:///?socket="+address, ""
	if network == "tcp" {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return "", nil, err
		}
		address = l.Addr().String()
		_, port, _ = net.SplitHostPort(address)
		l.Close() // the program takes it over
		uri = "nbd://" + address
	}
	cmd := exec.CommandContext(ctx, program, args(address, port)...)
	cmd.Dir, cmd.Stderr = s.images, io.Discard // they complain of clients that hang up
	p, err := s.start(cmd)
	if err != nil {
		return "", nil, err
	}
	if err := await(ctx, program, func() error { return dial(network, address) }); err != nil {
		p.stop()
		return "", nil, err
	}
	return uri, p, nil
}

// socket is a name for a socket that nobody has used.
func (s *setup) socket(program string) string {
	s.named++
	return filepath.Join(s.dir, fmt.Sprintf("%s-%d.sock", program, s.named))
}

// nbdSide is a side with a server of its own for each run, of an image that
// stays as it is or is written to. do says how fast it was.
func (s *setup) nbdSide(kind nbdKind, network, image string, writable bool, do func(ctx context.Context, uri string) (float64, error)) side {
	return side{kind.name, []string{image}, func(ctx context.Context) (float64, error) {
		return s.withNBD(ctx, kind, network, image, writable, do)
	}}
}

// nbdAnew is nbdSide with a new image for each run.
func (s *setup) nbdAnew(kind nbdKind, network, format string, length int64, warm []string, do func(ctx context.Context, uri string) (float64, error)) side {
	return side{kind.name, warm, func(ctx context.Context) (float64, error) {
		image, remove, err := s.fresh(ctx, format, length)
		if err != nil {
			return 0, err
		}
		defer remove()
		return s.withNBD(ctx, kind, network, image, true, do)
	}}
}

func (s *setup) withNBD(ctx context.Context, kind nbdKind, network, image string, writable bool, do func(ctx context.Context, uri string) (float64, error)) (float64, error) {
	uri, p, err := kind.start(ctx, network, image, writable)
	if err != nil {
		return 0, err
	}
	defer p.stop()
	return do(ctx, uri)
}

// A goal is what is wanted of extentd beside a peer.
type goal struct {
	peer  nbdKind
	ratio float64
}

// raceNBD races extentd with peers, and puts in a result for each. by makes the
// side of a kind. Values are rates, or seconds.
func (s *setup) raceNBD(ctx context.Context, results *table, what string, rates bool, by func(kind nbdKind) side, goals ...goal) error {
	sides := []side{by(s.nbdExtentd())}
	for _, g := range goals {
		sides = append(sides, by(g.peer))
	}
	v, err := s.race(ctx, what, sides...)
	if err != nil {
		return err
	}
	text := seconds
	if rates {
		text = rate
	}
	for i, g := range goals {
		theirs := v[i+1]
		ratio := theirs / v[0]
		if rates {
			ratio = v[0] / theirs
		}
		results.add(what, text(v[0]), g.peer.name+" "+text(theirs), ratio, g.ratio)
	}
	return nil
}
