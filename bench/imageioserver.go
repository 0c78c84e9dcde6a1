package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// An imageio is a running ovirt-imageio.
type imageio struct {
	*process
	url     string
	control string // its control socket
}

// findImageio returns the program: the one of this tree, or else the one that is
// installed.
func findImageio() (string, error) {
	for _, name := range []string{".bin/imageio/bin/ovirt-imageio", "ovirt-imageio"} {
		if found, err := exec.LookPath(name); err == nil {
			return filepath.Abs(found)
		}
	}
	return "", errors.New("ovirt-imageio is missing: apt-get install gcc python3-dev python3-venv && " +
		"python3 -m venv .bin/imageio && .bin/imageio/bin/pip install ovirt-imageio==2.5.1")
}

// serveImageio starts ovirt-imageio as whoever runs the benchmark, without TLS, and
// otherwise as it is by default.
func (s *setup) serveImageio(ctx context.Context) (*imageio, error) {
	program, err := findImageio()
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	address := l.Addr().(*net.TCPAddr)
	l.Close() // ovirt-imageio takes it over
	prefix := filepath.Join(s.dir, "imageio")
	if err := os.MkdirAll(filepath.Join(prefix, "conf.d"), 0o755); err != nil {
		return nil, err
	}
	config := filepath.Join(prefix, "conf.d", "50-bench.conf")
	if err := os.WriteFile(config, []byte(imageioConfig(prefix, address)), 0o644); err != nil {
		return nil, err
	}
	p, err := s.start(exec.CommandContext(ctx, program, "--conf-dir", prefix))
	if err != nil {
		return nil, err
	}
	i := &imageio{process: p, url: "http://" + address.String(), control: filepath.Join(prefix, "control.sock")}
	err = await(ctx, "ovirt-imageio", func() error {
		return errors.Join(dial("unix", i.control), dial("tcp", address.String()))
	})
	if err != nil {
		p.stop()
		text, _ := os.ReadFile(filepath.Join(prefix, "daemon.log"))
		return nil, fmt.Errorf("%w\n%s", err, text)
	}
	return i, nil
}

func imageioConfig(prefix string, address *net.TCPAddr) string {
	return fmt.Sprintf(`[daemon]
run_dir = %[1]s
drop_privileges = false
systemd_enable = false
[tls]
enable = false
[remote]
host = %[2]s
port = %[3]d
[local]
enable = false
[control]
transport = unix
socket = %[1]s/control.sock
[handler_logfile]
args = ("%[1]s/daemon.log",)
`, prefix, address.IP, address.Port)
}

// nbdForImageio starts a qemu-nbd as ovirt-imageio's own code does for a qcow2 image:
// without the depth of the allocation, its maps have no holes.
func (s *setup) nbdForImageio(ctx context.Context, image string) (uri string, p *process, err error) {
	return s.startPeer(ctx, "qemu-nbd", "unix", func(socket, _ string) []string {
		return []string{"-t", "-e", "32", "-r", "-A", "-f", "qcow2", "-k", socket, image}
	})
}

// ticketTime is how long tickets are good for, in seconds: longer than any run.
const ticketTime = 24 * 60 * 60

// admit gives the server a ticket that allows to read what is at an NBD URI, and
// returns the URL of the image.
func (i *imageio) admit(ctx context.Context, image, nbd string, size int64) (string, error) {
	socket := strings.TrimPrefix(nbd, "nbd+unix:///?socket=")
	body := map[string]any{"uuid": image, "size": size, "ops": []string{"read"}, "timeout": ticketTime, "url": "nbd:unix:" + socket}
	connect := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", i.control)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: connect}}
	_, err := sendJSON(ctx, client, http.MethodPut, "http://control/tickets/"+image, body)
	return i.url + "/images/" + image, err
}

// admit mints a ticket that allows to read an image, and returns its URL in the
// dialect.
func (e *extentd) admit(ctx context.Context, image string) (string, error) {
	body := map[string]any{"image": image, "verbs": []string{"read"}, "ttl": fmt.Sprint(ticketTime, "s")}
	answer, err := sendJSON(ctx, http.DefaultClient, http.MethodPost, e.url+"/v1/tickets", body)
	if err != nil {
		return "", err
	}
	var minted struct{ Ticket string }
	if err := json.Unmarshal(answer, &minted); err != nil {
		return "", err
	}
	return e.url + "/images/" + minted.Ticket, nil
}

// sendJSON makes a request that must succeed, and returns the answer.
func sendJSON(ctx context.Context, client *http.Client, method, address string, body any) ([]byte, error) {
	text, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, method, address, bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode/100 != 2 {
		err = fmt.Errorf("%s %s: %s: %s", method, address, resp.Status, answer)
	}
	return answer, err
}
