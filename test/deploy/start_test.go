package deploy

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// A node runs a pod's containers as processes: their volumes are directories, and
// the paths in their arguments and variables lead there.
type node struct {
	t       *testing.T
	pod     pod
	volumes string            // the directory with all of them
	swap    map[string]string // texts that are others here, such as ports
}

func newNode(t *testing.T, p pod) *node {
	t.Helper()
	dir, err := os.MkdirTemp("", "d") // short: the paths of sockets are bounded
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	n := &node{t: t, pod: p, volumes: dir, swap: map[string]string{}}
	for _, claim := range p.claims {
		n.fill(claim, nil)
	}
	for _, v := range p.spec.Volumes {
		n.fill(v.Name, n.content(&v))
	}
	return n
}

// content are the files of a volume whose Secret was built with the pod.
func (n *node) content(v *corev1.Volume) map[string][]byte {
	if v.Secret == nil {
		return nil
	}
	files := map[string][]byte{}
	data, _ := dig(n.pod.named("Secret", v.Secret.SecretName), "data").(object)
	for name, value := range data {
		text, err := base64.StdEncoding.DecodeString(value.(string))
		if err != nil {
			n.t.Fatal(err)
		}
		files[name] = text
	}
	return files
}

// fill puts files into a volume.
func (n *node) fill(volume string, files map[string][]byte) {
	n.t.Helper()
	if err := os.MkdirAll(n.path(volume), 0o755); err != nil {
		n.t.Fatal(err)
	}
	for name, text := range files {
		if err := os.WriteFile(n.path(volume, name), text, 0o600); err != nil {
			n.t.Fatal(err)
		}
	}
}

func (n *node) path(volume string, in ...string) string {
	return filepath.Join(append([]string{n.volumes, volume}, in...)...)
}

// here is a text with paths and ports as they are on this machine.
func (n *node) here(c *corev1.Container) *strings.Replacer {
	swap := map[string]string{}
	for _, m := range c.VolumeMounts {
		swap[m.MountPath] = n.path(m.Name)
	}
	for _, d := range c.VolumeDevices {
		swap[d.DevicePath] = n.path(d.Name, "device")
	}
	for from, to := range n.swap {
		swap[from] = to
	}
	var from []string
	for each := range swap {
		from = append(from, each)
	}
	slices.SortFunc(from, func(a, b string) int { return len(b) - len(a) })
	var pairs []string
	for _, each := range from {
		pairs = append(pairs, each, swap[each])
	}
	return strings.NewReplacer(pairs...)
}

// command is what a container runs; other arguments make it an exec probe.
func (n *node) command(c *corev1.Container, args ...string) *exec.Cmd {
	here := n.here(c)
	if len(args) == 0 {
		args = c.Args
	}
	cmd := exec.CommandContext(n.t.Context(), program)
	for _, arg := range args {
		cmd.Args = append(cmd.Args, here.Replace(arg))
	}
	cmd.Env = []string{}
	for _, e := range c.Env {
		cmd.Env = append(cmd.Env, e.Name+"="+here.Replace(e.Value))
	}
	cmd.Dir = n.volumes
	return cmd
}

// A process is a server that runs.
type process struct {
	cmd        *exec.Cmd
	url, admin string
	logs       *logs
}

// logs are lines of standard error. mu protects text.
type logs struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// serve starts the pod's server, and waits until it says where it listens.
func (n *node) serve() *process {
	n.t.Helper()
	p := &process{cmd: n.command(n.pod.server()), logs: new(logs)}
	p.cmd.Stderr = p.logs
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		n.t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() {
		if p.cmd.ProcessState == nil {
			_ = p.cmd.Process.Kill()
			_ = p.cmd.Wait()
		}
		if n.t.Failed() {
			n.t.Logf("standard error:\n%s", p.logs)
		}
	})
	line, _ := bufio.NewReader(out).ReadString('\n')
	var ok bool
	if p.url, ok = strings.CutPrefix(strings.TrimSpace(line), "listening on "); !ok {
		_ = p.cmd.Wait()
		n.t.Fatalf("it does not serve: %q", line)
	}
	for deadline := time.Now().Add(time.Minute); !p.said(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			n.t.Fatal("it does not log where it serves")
		}
	}
	return p
}

// said reads in the logs where probes are answered.
func (p *process) said() bool {
	for l := range strings.Lines(p.logs.String()) {
		var line struct{ Msg, Admin string }
		if json.Unmarshal([]byte(l), &line) == nil && line.Msg == "serving" {
			p.admin = line.Admin
			return true
		}
	}
	return false
}

// stop ends a server as the kubelet does.
func (p *process) stop(t *testing.T) {
	t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(time.Minute, func() { _ = p.cmd.Process.Kill() })
	defer late.Stop()
	if err := p.cmd.Wait(); err != nil {
		t.Errorf("the end: %v, want exit code 0", err)
	}
}

// get asks for a URL, with a token if it is not "".
func get(t *testing.T, client *http.Client, url, token string) (status int, body string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	all, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(all)
}

// probe does what the kubelet does to find out whether a server is ready.
func (n *node) probe(p *process) {
	n.t.Helper()
	c := n.pod.server()
	for what, probe := range map[string]*corev1.Probe{"startup": c.StartupProbe, "readiness": c.ReadinessProbe, "liveness": c.LivenessProbe} {
		switch {
		case probe == nil:
		case probe.Exec != nil:
			cmd := n.command(c, probe.Exec.Command[1:]...)
			if out, err := cmd.CombinedOutput(); err != nil {
				n.t.Errorf("%s probe: %v\n%s", what, err, out)
			}
		default:
			if status, body := get(n.t, http.DefaultClient, p.admin+probe.HTTPGet.Path, ""); status != http.StatusOK {
				n.t.Errorf("%s probe: %d %s", what, status, body)
			}
		}
	}
}

// run runs a container to its end.
func (n *node) run(c *corev1.Container) string {
	n.t.Helper()
	out, err := n.command(c).CombinedOutput()
	if err != nil {
		n.t.Fatalf("%s: %v\n%s", show(c), err, out)
	}
	return string(out)
}

// disk makes an image of random bytes among holes with the real tools.
func disk(t *testing.T, path string) {
	t.Helper()
	raw := filepath.Join(t.TempDir(), "disk.raw")
	f, err := os.Create(raw)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for i := range int64(20) {
		if _, err := fmt.Fprintf(io.NewOffsetWriter(f, i*3_000_000), "%d%s", i, strings.Repeat(path, 1000)); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(64 << 20); err != nil {
		t.Fatal(err)
	}
	qemuImg(t, "convert", "-f", "raw", "-O", "qcow2", raw, path)
}

func qemuImg(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("qemu-img", args...).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img %v: %v\n%s", args, err, out)
	}
}
