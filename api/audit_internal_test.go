package api

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/extentd/extentd/audit"
	"github.com/extentd/extentd/auth"
)

// recordOf is the record of a request, nil if there is none.
func recordOf(t *testing.T, opt Options, r *http.Request, pattern string, next http.HandlerFunc) *audit.Record {
	t.Helper()
	var out bytes.Buffer
	log, err := audit.New(audit.Options{Writer: &out})
	if err != nil {
		t.Fatal(err)
	}
	opt.Audit = log
	func() {
		defer func() { _ = recover() }()
		newServer(opt).observe(r.Method, pattern, next).ServeHTTP(httptest.NewRecorder(), r)
	}()
	if out.Len() == 0 {
		return nil
	}
	rec := new(audit.Record)
	if err := json.Unmarshal(out.Bytes(), rec); err != nil {
		t.Fatal(err)
	}
	return rec
}

// Who made a request, and what came of it, is written down whatever it is.
func TestAuditResults(t *testing.T) {
	status := func(n int) http.HandlerFunc { return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(n) } }
	for name, c := range map[string]struct {
		opt    Options
		next   http.HandlerFunc
		status int
		result string
		caller audit.Caller
	}{
		"no status":     {Options{}, func(http.ResponseWriter, *http.Request) {}, 200, audit.OK, audit.Caller{Kind: "anyone"}},
		"done":          {Options{}, status(201), 201, audit.OK, audit.Caller{Kind: "anyone"}},
		"refused":       {Options{}, status(409), 409, audit.Refused, audit.Caller{Kind: "anyone"}},
		"busy":          {Options{}, status(503), 503, audit.Refused, audit.Caller{Kind: "anyone"}},
		"no space":      {Options{}, status(507), 507, audit.Failed, audit.Caller{Kind: "anyone"}},
		"failed":        {Options{}, status(500), 500, audit.Failed, audit.Caller{Kind: "anyone"}},
		"panic":         {Options{}, func(http.ResponseWriter, *http.Request) { panic("a bug") }, 500, audit.Failed, audit.Caller{Kind: "anyone"}},
		"aborted":       {Options{}, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, 0, audit.Aborted, audit.Caller{Kind: "anyone"}},
		"not known":     {Options{Authenticate: true}, status(401), 401, audit.Refused, audit.Caller{Kind: "unknown"}},
		"known":         {Options{Authenticate: true}, as(&auth.Caller{Kind: auth.KindJWT, Name: "ci", Subject: "job-7"}), 204, audit.OK, audit.Caller{Kind: "jwt", Name: "ci", Subject: "job-7"}},
		"with a ticket": {Options{}, as(&auth.Caller{Kind: auth.KindTicket, Name: "ci", Ticket: "t-1"}), 204, audit.OK, audit.Caller{Kind: "ticket", Name: "ci", Ticket: "t-1"}},
	} {
		t.Run(name, func(t *testing.T) {
			rec := recordOf(t, c.opt, httptest.NewRequest("POST", "/v1/images/x/flush?ticket=secret", strings.NewReader("secret")), "/v1/images/{image}/flush", c.next)
			if rec == nil || rec.Status != c.status || rec.Result != c.result || rec.Caller != c.caller {
				t.Fatalf("got %+v, want %d %s by %+v", rec, c.status, c.result, c.caller)
			}
			if rec.Request == "" || rec.Remote != "192.0.2.1:1234" || rec.Method != "POST" || rec.Route != "/v1/images/{image}/flush" || rec.Time.IsZero() || rec.Protocol != "http" {
				t.Errorf("incomplete: %+v", rec)
			}
			text, _ := json.Marshal(rec)
			if bytes.Contains(text, []byte("secret")) {
				t.Errorf("it holds what it must not: %s", text)
			}
		})
	}
	for _, method := range []string{"GET", "HEAD"} {
		if rec := recordOf(t, Options{}, httptest.NewRequest(method, "/v1/images", nil), "/v1/images", status(200)); rec != nil {
			t.Errorf("%s has a record: %+v", method, rec)
		}
	}
	long := recordOf(t, Options{}, httptest.NewRequest(strings.Repeat("X", 5000), "/", nil), "", status(405))
	if long == nil || len(long.Method) != maxPlain {
		t.Errorf("a method of 5,000 bytes: %+v", long)
	}
}

// as is a handler of a request that a caller makes.
func as(c *auth.Caller) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.(*response).caller = c
		w.WriteHeader(http.StatusNoContent)
	}
}

// What was to change is told of each request that says it.
func TestAuditChanges(t *testing.T) {
	off, n, size := int64(4096), int64(512), int64(1<<20)
	repair := CheckRequestRepair("leaks")
	for want, request := range map[string]any{
		`{"name":"a.qcow2","size":1048576}`:   CreateImageRequestObject{Body: &ImageCreation{Name: "a.qcow2", Size: &size}},
		`{"size":1048576}`:                    PatchImageRequestObject{JSONBody: &ImagePatch{Size: &size}},
		`{"offset":4096,"length":512}`:        ZeroDataRequestObject{Body: &ZeroRange{Offset: off, Length: n}},
		`{"offset":4096,"length":512} `:       TrimDataRequestObject{Body: &TrimRange{Offset: off, Length: n}},
		`{"repair":"leaks"}`:                  CheckImageRequestObject{Body: &CheckRequest{Repair: &repair}},
		`{"length":512}`:                      CreateAllocationRequestObject{Body: &AllocationRequest{Length: &n}},
		`{"allocation":"a-1"}`:                DeleteAllocationRequestObject{Allocation: "a-1"},
		`{"updates":2}`:                       UpdateMappingsRequestObject{Body: &MappingUpdates{Updates: make([]MappingUpdate, 2)}},
		`{"name":"a.qcow2","verbs":["read"]}`: MintTicketRequestObject{Body: &TicketRequest{Image: "a.qcow2", Verbs: []Verb{"read"}}},
		`{"ticket":"t-1"}`:                    RevokeTicketRequestObject{Id: "t-1"},
		`null`:                                FlushDataRequestObject{},
		`null `:                               DeleteImageRequestObject{},
		`{"size":1048576} `:                   PatchImageRequestObject{ApplicationMergePatchPlusJSONBody: &ImagePatch{Size: &size}},
		`{"name":"` + strings.Repeat("x", maxPlain) + `"}`: CreateImageRequestObject{Body: &ImageCreation{Name: strings.Repeat("x", 9999)}},
	} {
		got, err := json.Marshal(changeOf(request))
		if err != nil || string(got) != strings.TrimSpace(want) {
			t.Errorf("%T: %s, %v, want %s", request, got, err, want)
		}
	}
	for want, header := range map[string][]string{
		`{"offset":0,"length":5}`:   nil,
		`{"offset":10,"length":11}`: {"bytes 10-20/*"},
		`{}`:                        {"bytes 20-10/*"},
		`{} `:                       {"lines 1-2/3"},
		`{}  `:                      {"bytes 10-20/*", "bytes 0-1/*"},
	} {
		r := httptest.NewRequest("PUT", "/x", strings.NewReader("12345"))
		r.Header["Content-Range"] = header
		if got, err := json.Marshal(putChange(r)); err != nil || string(got) != strings.TrimSpace(want) {
			t.Errorf("%q: %s, %v, want %s", header, got, err, want)
		}
	}
}
