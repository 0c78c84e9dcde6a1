package api_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/extentd/extentd/api"
	"github.com/extentd/extentd/auth"
	"github.com/extentd/extentd/state"
)

// again sends a request with a key twice, and once more with another body, and
// returns the one answer.
func (f *fixture) again(t *testing.T, status int, path, body, other string, headers ...string) answer {
	t.Helper()
	headers = append(headers, "Idempotency-Key", path)
	first := f.json(t, http.MethodPost, path, body, headers...)
	if first.status != status || first.header.Get("Idempotency-Replayed") != "" {
		t.Fatalf("%d, want %d: %v %s", first.status, status, first.header, first.body)
	}
	second := f.json(t, http.MethodPost, path, body, headers...)
	if second.status != status || string(second.body) != string(first.body) || second.header.Get("Idempotency-Replayed") != "true" {
		t.Errorf("%d: %v %s, was %s", second.status, second.header, second.body, first.body)
	}
	for _, name := range []string{"Location", "Etag", "Content-Type", "Content-Length"} {
		if got, want := second.header.Get(name), first.header.Get(name); got != want {
			t.Errorf("%s is %q, was %q", name, got, want)
		}
	}
	f.json(t, http.MethodPost, path, other, headers...).problem(t, 409, "conflict")
	return first
}

// Each route that creates or publishes does it once.
func TestIdempotencyKey(t *testing.T) {
	f := start(t, api.Options{}, nil)
	f.again(t, 201, "/v1/images", `{"name":"a.qcow2","format":"qcow2","size":1048576}`, `{"name":"b.qcow2","format":"qcow2","size":1048576}`)
	var a api.Allocation
	decode(t, f.again(t, 201, "/v1/images/a.qcow2/allocations", `{"length":131072}`, `{"length":65536}`).body, &a)
	var list api.AllocationList
	decode(t, f.expect(t, 200, "/v1/images/a.qcow2/allocations").body, &list)
	if len(list.Allocations) != 1 || list.Allocations[0].Id != a.Id {
		t.Errorf("%+v", list)
	}
	batch := func(off, at int) string {
		return fmt.Sprintf(`{"offset":%d,"length":65536,"target":{"kind":"data","allocation":%q,"allocation_offset":%d}}`, off, a.Id, at)
	}
	one := `{"updates":[` + batch(0, 0) + `]}`
	f.again(t, 200, "/v1/images/a.qcow2/mappings", one, `{"updates":[`+batch(65536, 0)+`]}`, "If-Match", "*")
	f.json(t, http.MethodPost, "/v1/images/a.qcow2/mappings", one, "Idempotency-Key", "new").problem(t, 409, "conflict") // mapped already

	// The second update fails: the first has been applied, and is not again.
	f.qemu(t, "qemu-img", "create", "-q", "-f", "qcow2", "c.qcow2", "1M")
	f.qemu(t, "qemu-io", "-f", "qcow2", "-c", "write -P 3 512k 64k", "-c", "write -z 512k 64k", "c.qcow2")
	f.allocate(t, "c.qcow2", `{"anchored":{"offset":524288,"length":65536}}`)
	a = f.allocate(t, "c.qcow2", `{"length":131072}`)
	part := `{"updates":[` + batch(0, 0) + `,` + batch(524288, 65536) + `]}`
	first := f.json(t, http.MethodPost, "/v1/images/c.qcow2/mappings", part, "Idempotency-Key", "part")
	if p := first.problem(t, 409, "conflict"); p.Applied == nil || *p.Applied != 1 {
		t.Errorf("%s", first.body)
	}
	second := f.json(t, http.MethodPost, "/v1/images/c.qcow2/mappings", part, "Idempotency-Key", "part")
	if second.header.Get("Idempotency-Replayed") != "true" || string(second.body) != string(first.body) {
		t.Errorf("%d: %s", second.status, second.body)
	}
}

// A ticket is handed out again to whoever it was minted for, and is in no log.
func TestIdempotencyKeyOfTickets(t *testing.T) {
	db := state.New(t.TempDir())
	t.Cleanup(func() { _ = db.Close() })
	guard, err := auth.New(t.Context(), auth.Options{State: db})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = guard.Close() })
	f := start(t, api.Options{Guard: guard, State: db}, nil)
	f.write(t, "a.raw", make([]byte, 512))
	var got api.Ticket
	decode(t, f.again(t, 201, "/v1/tickets", `{"image":"a.raw","verbs":["read"],"ttl":"1m"}`, `{"image":"a.raw","verbs":["map"],"ttl":"1m"}`).body, &got)
	f.expect(t, 200, "/v1/images/a.raw/data", "Authorization", "Bearer "+got.Ticket)
	if strings.Contains(f.log.String(), got.Ticket) {
		t.Error("the log has the ticket")
	}
}

// Elsewhere the header means nothing.
func TestIdempotencyKeyElsewhere(t *testing.T) {
	f := start(t, api.Options{}, nil)
	f.write(t, "a.raw", make([]byte, 1<<20))
	for range 2 {
		for _, call := range []struct{ path, body string }{{"/zero", `{"offset":0,"length":512}`}, {"/trim", `{"offset":0,"length":1024}`}, {"/flush", `{}`}} {
			a := f.json(t, http.MethodPost, "/v1/images/a.raw"+call.path, call.body, "Idempotency-Key", "not a key")
			if a.status != 204 || a.header.Get("Idempotency-Replayed") != "" {
				t.Errorf("%s: %d %s", call.path, a.status, a.body)
			}
		}
		f.expect(t, 200, "/v1/images", "Idempotency-Key", "not a key")
	}
}
