package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// extentd is a running server.
type extentd struct {
	*process
	url string
}

// serve starts extentd once, for all works that want it warm.
func (s *setup) serve(ctx context.Context) (*extentd, error) {
	if s.extentd != nil {
		return s.extentd, nil
	}
	e, err := s.serveFresh(ctx)
	s.extentd = e
	return e, err
}

// serveFresh starts another extentd, which has nothing open yet.
func (s *setup) serveFresh(ctx context.Context, flags ...string) (*extentd, error) {
	args := append([]string{"serve", "--listen", "127.0.0.1:0"}, flags...)
	cmd := exec.CommandContext(ctx, s.binary, append(args, s.images)...)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	log, err := os.CreateTemp(s.dir, "extentd-*.log")
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd.Stderr = log
	p, err := s.start(cmd)
	if err != nil {
		return nil, err
	}
	lines := bufio.NewReader(stdout)
	for {
		line, err := lines.ReadString('\n')
		if at := strings.Index(line, "http://"); at >= 0 {
			return &extentd{process: p, url: strings.TrimSpace(line[at:])}, nil
		}
		if err != nil {
			text, _ := os.ReadFile(log.Name())
			return nil, fmt.Errorf("extentd does not start: %w\n%s", err, text)
		}
	}
}

// logs are what the servers wrote, as an error.
func (s *setup) logs() error {
	names, _ := filepath.Glob(filepath.Join(s.dir, "extentd-*.log"))
	var all []error
	for _, name := range names {
		if text, err := os.ReadFile(name); err == nil {
			all = append(all, fmt.Errorf("%s:\n%s", filepath.Base(name), text))
		}
	}
	return errors.Join(all...)
}

// data is the URL of an image's bytes.
func (e *extentd) data(image string) string { return e.url + "/v1/images/" + image + "/data" }

// statusField reads a field of /proc/PID/status, in bytes.
func (e *extentd) statusField(name string) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", e.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, name+":"); ok {
			n, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return n << 10, err
		}
	}
	return 0, fmt.Errorf("no %s in the process's status", name)
}

// readSoFar is how many bytes the process has read by system calls.
func (e *extentd) readSoFar() (int64, error) { return e.ioField("rchar") }

// writtenSoFar is how many bytes the process has written by system calls.
func (e *extentd) writtenSoFar() (int64, error) { return e.ioField("wchar") }

func (e *extentd) ioField(name string) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", e.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, name+":"); ok {
			return strconv.ParseInt(strings.TrimSpace(rest), 10, 64)
		}
	}
	return 0, fmt.Errorf("no %s in what the process has read and written", name)
}

// serveNginx starts nginx once, on the directory of the images, and returns
// its URL.
func (s *setup) serveNginx(ctx context.Context) (string, error) {
	if s.nginx != "" {
		return s.nginx, nil
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	address := l.Addr().String()
	l.Close() // nginx takes it over
	prefix := filepath.Join(s.dir, "nginx")
	if err := os.MkdirAll(prefix, 0o755); err != nil {
		return "", err
	}
	config := filepath.Join(prefix, "nginx.conf")
	if err := os.WriteFile(config, []byte(nginxConfig(prefix, s.images, address)), 0o644); err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, "nginx", "-p", prefix, "-c", config, "-e", filepath.Join(prefix, "error.log"))
	if _, err := s.start(cmd); err != nil {
		return "", err
	}
	s.nginx = "http://" + address
	return s.nginx, await(ctx, "nginx", func() error { return dial("tcp", address) })
}

// nginxConfig is nginx at its fastest for files on loopback, run by whoever
// runs the benchmark.
func nginxConfig(prefix, root, address string) string {
	user := ""
	if os.Getuid() == 0 {
		user = "user root;"
	}
	paths := ""
	for _, name := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		paths += fmt.Sprintf("  %s_temp_path %s;\n", name, filepath.Join(prefix, name))
	}
	return fmt.Sprintf(`%s
daemon off;
worker_processes 2;
pid %s/nginx.pid;
error_log %s/error.log;
events { worker_connections 256; }
http {
%s  access_log off;
  sendfile on;
  tcp_nopush on;
  keepalive_requests 1000000000;
  default_type application/octet-stream;
  server { listen %s; root %s; }
}
`, user, prefix, prefix, paths, address, root)
}

func dial(network, address string) error {
	conn, err := net.Dial(network, address)
	if err == nil {
		conn.Close()
	}
	return err
}

// serveNBD starts a qemu-nbd of an image and returns its URI.
func (s *setup) serveNBD(ctx context.Context, image string, writable bool) (uri string, p *process, err error) {
	socket := filepath.Join(s.dir, image+".nbd")
	format := strings.TrimPrefix(filepath.Ext(image), ".")
	args := []string{"-t", "-e", "16", "--discard=unmap", "-f", format, "-k", socket, image}
	if !writable {
		args = append(args, "-r")
	}
	cmd := exec.CommandContext(ctx, "qemu-nbd", args...)
	cmd.Dir, cmd.Stderr = s.images, io.Discard // it complains of clients that hang up
	if p, err = s.start(cmd); err != nil {
		return "", nil, err
	}
	return "nbd+unix:///?socket=" + socket, p, await(ctx, "qemu-nbd", func() error { return dial("unix", socket) })
}
