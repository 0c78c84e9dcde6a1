package deploy

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"net/http"
	"os"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

func env(name, value string) corev1.EnvVar { return corev1.EnvVar{Name: name, Value: value} }

const secret = "a-token-of-these-tests-alone"

// known is a token file in which the first token is one that is known here.
func known(text []byte) []byte {
	sum := sha256.Sum256([]byte(secret))
	return []byte(strings.Replace(string(text), strings.Repeat("0", 64), hex.EncodeToString(sum[:]), 1))
}

// standalone starts the server of an example with everything that comes from
// elsewhere: certificates and an issuer. drain takes the place of its delay.
func standalone(t *testing.T, p pod, drain string) (*node, *process, *issuer, *http.Client) {
	t.Helper()
	n := newNode(t, p)
	ca := newAuthority(t)
	issuer := newIssuer(t, ca)
	tokens, err := os.ReadFile(n.path("tokens", "tokens.yaml"))
	if err != nil && n.pod.named("Secret", "extentd-tokens") != nil {
		t.Fatal(err)
	}
	n.fill("tokens", map[string][]byte{"tokens.yaml": known(tokens)})
	cert, key := ca.issue(t, "extentd")
	n.fill("tls", map[string][]byte{"tls.crt": cert, "tls.key": key, "ca.crt": ca.pem})
	n.fill("client-ca", map[string][]byte{"ca.crt": ca.pem})
	n.fill("oidc-ca", map[string][]byte{"ca.crt": ca.pem})
	n.swap[":7080"], n.swap[":7081"] = "127.0.0.1:0", "127.0.0.1:0"
	if delay := setting(p.server(), "drain-delay"); delay != "" {
		n.swap[delay] = drain
	}
	if url := setting(p.server(), "oidc-issuer"); url != "" {
		n.swap[url] = issuer.url
	}
	for _, d := range p.server().VolumeDevices { // a file stands for a device
		if err := os.WriteFile(n.path(d.Name, "device"), make([]byte, 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca.pem)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "extentd"}}
	t.Cleanup(transport.CloseIdleConnections)
	return n, n.serve(), issuer, &http.Client{Transport: transport}
}

// Every example with a server of its own serves those who may, and nobody else, on
// addresses that its probes find.
func TestServe(t *testing.T) {
	each(t, func(t *testing.T, p pod) {
		if p.server() == nil || p.named("Secret", "extentd-tokens") == nil {
			return // a sidecar, which TestBackup starts, or the base, whose tokens are yours
		}
		n, server, issuer, client := standalone(t, p, "0s")
		n.probe(server)
		if _, isTLS := findVolume(p, "tls"); isTLS != strings.HasPrefix(server.url, "https://") {
			t.Errorf("it serves at %s", server.url)
		}
		list := server.url + "/v1/images"
		for token, want := range map[string]int{"": 401, "another": 401, secret: 200} {
			if status, body := get(t, client, list, token); status != want {
				t.Errorf("with the token %q: %d %s, want %d", token, status, body, want)
			}
		}
		if status, _ := get(t, http.DefaultClient, server.admin+"/v1/images", secret); status != http.StatusNotFound {
			t.Errorf("images where probes are answered: %d", status)
		}
		if setting(p.server(), "oidc-issuer") != "" {
			for subject, want := range map[string]int{
				"system:serviceaccount:extentd:extentd-client": 200,
				"system:serviceaccount:extentd:default":        401,
			} {
				if status, body := get(t, client, list, issuer.token(t, subject, "extentd")); status != want {
					t.Errorf("%s: %d %s, want %d", subject, status, body, want)
				}
			}
			if status, _ := get(t, client, list, issuer.token(t, "system:serviceaccount:extentd:extentd-client", "other")); status != 401 {
				t.Errorf("a token for another audience: %d, want 401", status)
			}
		}
		if len(p.server().VolumeDevices) > 0 {
			if status, body := get(t, client, list+"/disk", secret); status != 200 || !regexp.MustCompile(`"size": ?1048576\b`).MatchString(body) {
				t.Errorf("the image of the device: %d %s", status, body)
			}
		}
		server.stop(t)
	})
}

// A pod that ends says so for long enough that probes hear of it, and serves
// meanwhile.
func TestDrain(t *testing.T) {
	p := podsOf(t, manifests+"/examples/tokens")[0]
	delay, err := time.ParseDuration(setting(p.server(), "drain-delay"))
	if err != nil {
		t.Fatal(err)
	}
	probe := p.server().ReadinessProbe
	if period := time.Duration(probe.PeriodSeconds) * time.Second; probe.FailureThreshold != 1 || period > delay {
		t.Errorf("readiness is asked for every %v, and the delay is %v", period, delay)
	}
	_, server, _, client := standalone(t, p, delay.String())
	if err := server.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	for status := 200; status != http.StatusServiceUnavailable; {
		status, _ = get(t, client, server.admin+"/readyz", "")
	}
	if status, body := get(t, client, server.url+"/v1/images", secret); status != 200 {
		t.Errorf("a request meanwhile: %d %s", status, body)
	}
	if err := server.cmd.Wait(); err != nil {
		t.Errorf("the end: %v, want exit code 0", err)
	}
}

// The base does not start without a file of tokens.
func TestSecureByDefault(t *testing.T) {
	all := podsOf(t, manifests+"/base")
	n := newNode(t, all[0])
	if err := os.Remove(n.path("tokens")); err != nil {
		t.Fatal(err)
	}
	if out, err := n.command(n.pod.server()).CombinedOutput(); err == nil || !strings.Contains(string(out), "tokens") {
		t.Errorf("it ended with %v\n%s", err, out)
	}
}

// The client of examples/client is one that examples/production knows.
func TestClient(t *testing.T) {
	production := podsOf(t, manifests+"/examples/production")[0]
	n, server, issuer, _ := standalone(t, production, "0s")
	disk(t, n.path("images", "vm.qcow2"))

	c := newNode(t, podsOf(t, manifests+"/examples/client")[0])
	tls, _ := findVolume(c.pod, "ca")
	if tls.Secret == nil || tls.Secret.SecretName != "extentd-tls" {
		t.Error("the client does not trust what the server shows")
	}
	ca, err := os.ReadFile(n.path("tls", "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	c.fill("ca", map[string][]byte{"ca.crt": ca})
	projected, _ := findVolume(c.pod, "token")
	token := projected.Projected.Sources[0].ServiceAccountToken
	subject := "system:serviceaccount:" + text(c.pod.workload, "metadata", "namespace") + ":" + c.pod.spec.ServiceAccountName
	c.fill("token", map[string][]byte{token.Path: []byte(issuer.token(t, subject, token.Audience))})
	c.swap["https://extentd:7080"] = server.url
	if out := c.run(&c.pod.spec.Containers[0]); !strings.Contains(out, "vm.qcow2") {
		t.Errorf("the client lists\n%s", out)
	}
	server.stop(t)
}

func findVolume(p pod, name string) (corev1.Volume, bool) {
	for _, v := range p.spec.Volumes {
		if v.Name == name {
			return v, true
		}
	}
	return corev1.Volume{}, false
}
