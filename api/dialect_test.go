package api_test

import (
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/go-chi/chi/v5"
	"github.com/google/go-cmp/cmp"

	"github.com/extentd/extentd/api"
	"github.com/extentd/extentd/api/imageio"
	"github.com/extentd/extentd/api/kubevirt"
	"github.com/extentd/extentd/auth"
	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/state"
)

func allDialects() []*api.Dialect { return []*api.Dialect{imageio.New(), kubevirt.New()} }

// oddBitmap is a name that a path must encode.
const oddBitmap = "a@b%2F/c"

// startDialects starts a guarded server that speaks all dialects, with a token
// for each set of verbs.
func startDialects(t *testing.T, opt api.Options) *fixture {
	t.Helper()
	var file strings.Builder
	file.WriteString("tokens:\n")
	for v := auth.Verbs(1); v <= auth.All; v++ {
		fmt.Fprintf(&file, "- {name: v%d, sha256: %s, grants: [{verbs: [%s], images: ['d*']}]}\n", v, hexDigest(tokenFor(v)), v)
	}
	path := filepath.Join(t.TempDir(), "tokens.yaml")
	if err := os.WriteFile(path, []byte(file.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	db := state.New(t.TempDir())
	guard, err := auth.New(t.Context(), auth.Options{File: path, State: db})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := guard.Close(); err != nil {
			t.Error(err)
		}
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	opt.Guard, opt.Authenticate, opt.Dialects = guard, true, allDialects()
	f := start(t, opt, nil)
	f.random(t, "disk.raw", 100_000)
	f.random(t, "other.raw", 4096)
	f.write(t, "dcorrupt.qcow2", []byte("QFI\xfb and no more"))
	f.qemu(t, "qemu-img", "create", "-q", "-f", "qcow2", "disk.qcow2", "4M")
	f.qemu(t, "qemu-io", "-f", "qcow2", "-c", "write -P 1 0 64k", "-c", "write -z 64k 64k", "disk.qcow2")
	f.qemu(t, "qemu-img", "create", "-q", "-f", "qcow2", "dirty.qcow2", "4M")
	f.qemu(t, "qemu-img", "bitmap", "--add", "--enable", "dirty.qcow2", "first")
	f.qemu(t, "qemu-io", "-f", "qcow2", "-c", "write -P 1 0 64k", "-c", "write -z 1M 64k", "dirty.qcow2")
	f.qemu(t, "qemu-img", "bitmap", "--disable", "dirty.qcow2", "first")
	f.qemu(t, "cp", "dirty.qcow2", "dtwo.qcow2")
	f.qemu(t, "qemu-img", "bitmap", "--add", "dtwo.qcow2", oddBitmap)
	f.qemu(t, "cp", "dirty.qcow2", "dcrash.qcow2")
	f.qemu(t, "qemu-img", "bitmap", "--add", "--enable", "dcrash.qcow2", "crashed")
	f.qemu(t, "sh", "-c", "qemu-io -f qcow2 -c 'write -P 9 2M 64k' -c flush -c abort dcrash.qcow2 >crash.log 2>&1; true")
	return f
}

// ticket mints a ticket for an image.
func (f *fixture) ticket(t testing.TB, image string, verbs auth.Verbs) string {
	t.Helper()
	var names []string
	for v := auth.Verbs(1); v <= auth.All; v <<= 1 {
		if verbs.Has(v) {
			names = append(names, `"`+v.String()+`"`)
		}
	}
	body := fmt.Sprintf(`{"image":%q,"verbs":[%s]}`, image, strings.Join(names, ","))
	a := f.json(t, "POST", "/v1/tickets", body, "Authorization", "Bearer "+tokenFor(auth.All))
	if a.status != http.StatusCreated {
		t.Fatalf("%d %s", a.status, a.body)
	}
	var ticket api.Ticket
	decode(t, a.body, &ticket)
	return ticket.Ticket
}

func routesOf(t *testing.T, dialects ...*api.Dialect) map[string]bool {
	t.Helper()
	svc, err := service.New(service.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer svc.Close()
	routes := map[string]bool{}
	err = chi.Walk(api.New(svc, api.Options{Dialects: dialects}).(chi.Routes), func(method, route string, _ http.Handler, _ ...func(http.Handler) http.Handler) error {
		routes[method+" "+route] = true
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return routes
}

func loadDialect(t *testing.T, name string) *openapi3.T {
	t.Helper()
	openapi3filter.RegisterBodyDecoder("application/yaml", openapi3filter.PlainBodyDecoder)
	doc, err := openapi3.NewLoader().LoadFromFile(filepath.Join(name, "openapi.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

// The contract of each dialect is valid, and has its routes, and no others.
func TestDialectContracts(t *testing.T) {
	none := routesOf(t)
	for _, d := range allDialects() {
		doc := loadDialect(t, d.Name)
		if err := doc.Validate(t.Context(), openapi3.EnableExamplesValidation()); err != nil {
			t.Errorf("%s: %v", d.Name, err)
		}
		want := maps.Clone(none)
		for path, item := range doc.Paths.Map() {
			for method, op := range item.Operations() {
				want[method+" "+path] = true
				if op.OperationID == "" || op.Summary == "" || len(op.Tags) != 1 {
					t.Errorf("%s: %s %s: operationId, summary or tag is missing", d.Name, method, path)
				}
			}
		}
		if diff := cmp.Diff(want, routesOf(t, d)); diff != "" {
			t.Errorf("%s: routes differ from the contract (-contract +routes):\n%s", d.Name, diff)
		}
	}
}

// refusal wants an error as the dialects tell it.
func (a answer) refusal(t testing.TB, what string, status int) {
	t.Helper()
	body := string(a.body)
	if a.status != status || a.header.Get("Content-Type") != "text/plain; charset=UTF-8" || !strings.HasSuffix(body, "\n") || strings.Count(body, "\n") != 1 || len(body) < 10 {
		t.Errorf("%s: %d, want %d: %v\n%.300s", what, a.status, status, a.header, a.body)
	}
	if strings.Contains(body, "extentd_ticket_1_") {
		t.Errorf("%s: the answer has the ticket: %s", what, a.body)
	}
}

// Without a dialect there is nothing at its paths.
func TestDialectsAreOff(t *testing.T) {
	f := start(t, api.Options{}, nil)
	f.random(t, "disk.raw", 512)
	for _, path := range []string{"/images/x", "/exports/disk.raw/map", "/exports/disk.raw/data", "/imageio/openapi.yaml", "/kubevirt/openapi.yaml"} {
		f.get(t, path).problem(t, 404, "not-found")
	}
}

// What is secret in a path or a query is in no log, whatever becomes of the request.
func TestDialectsTellNoSecrets(t *testing.T) {
	f := startDialects(t, api.Options{})
	good := f.ticket(t, "disk.raw", auth.Map|auth.Read)
	secrets := []string{good, good[:len(good)-4] + "AAAA", tokenFor(auth.Read), "hunter2"}
	for _, secret := range secrets {
		for _, method := range []string{"GET", "PUT", "PATCH", "DELETE", "POST", "OPTIONS", "HEAD", "BREW"} {
			for _, form := range []string{"/images/%s", "/images/%s@b", "//images/%s", "/images/%s/", "/images/%s/extents", "/images/%s/nothing", "/images/%%20%s", "/%%69mages/%s", "/images/%s/checksum?block_size=1"} {
				a := f.do(t, method, fmt.Sprintf(form, secret))
				if strings.Contains(string(a.body), secret) {
					t.Errorf("%s "+form+": the answer has it: %s", method, secret, a.body)
				}
			}
			for _, path := range []string{"/exports/disk.raw/map", "/exports/none.raw/data", "/exports/disk.raw", "/exports/x/y/z"} {
				f.do(t, method, path+"?x-kubevirt-export-token="+url.QueryEscape(secret))
				f.do(t, method, path, "X-Kubevirt-Export-Token", secret)
			}
		}
	}
	for _, secret := range secrets {
		if log := f.log.String(); strings.Contains(log, secret) {
			at := strings.Index(log, secret)
			t.Errorf("the log has %s: %s", secret, log[max(0, at-300):at+10])
		}
	}
	if !strings.Contains(f.log.String(), "path=/images/...") {
		t.Error("no request was logged")
	}
}
