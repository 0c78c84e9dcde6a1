package api_test

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/extentd/extentd/api"
	"github.com/extentd/extentd/auth"
	"github.com/extentd/extentd/state"
)

// Images of the tests: some callers may do something on mine, and nobody anything
// on theirs.
const (
	mine   = "mine.raw"
	theirs = "theirs.raw"
)

// An accessRow is a call of one operation, which changes nothing, and what it needs.
type accessRow struct {
	method, path, body string // IMAGE stands for the image's name
	header             []string
	public             bool
	known              bool // whoever is known may call it
	needs              auth.Verbs
}

// stale fails a precondition: whoever gets to that was let in.
var stale = []string{"If-Match", `"stale"`}

// accessRows has a row for each operation of openapi.yaml, and more where what is
// needed depends on the body.
var accessRows = map[string][]accessRow{
	"listImages": {{method: "GET", path: "/v1/images", known: true}},
	"createImage": {
		{method: "POST", path: "/v1/images", body: `{"name":"IMAGE","format":"raw","size":512}`, needs: auth.Create},
	},
	"getImage":    {{method: "GET", path: "/v1/images/IMAGE", needs: auth.Map}},
	"patchImage":  {{method: "PATCH", path: "/v1/images/IMAGE", body: `{"size":512}`, header: stale, needs: auth.Admin}},
	"deleteImage": {{method: "DELETE", path: "/v1/images/IMAGE", header: stale, needs: auth.Admin}},
	"getLimits":   {{method: "GET", path: "/v1/images/IMAGE/limits", needs: auth.Map}},
	"getExtents": {
		{method: "GET", path: "/v1/images/IMAGE/extents", needs: auth.Map},
		{method: "GET", path: "/v1/images/IMAGE/extents", header: []string{"Accept", "application/x-ndjson"}, needs: auth.Map},
		{method: "GET", path: "/v1/images/IMAGE/extents?dirty=none", needs: auth.Map},
	},
	"getData": {
		{method: "GET", path: "/v1/images/IMAGE/data", needs: auth.Read},
		{method: "GET", path: "/v1/images/IMAGE/data", header: []string{"Range", "bytes=0-1,4-5"}, needs: auth.Read},
		{method: "GET", path: "/v1/images/IMAGE/data", header: []string{"If-None-Match", "*"}, needs: auth.Read},
		{method: "GET", path: "/v1/images/IMAGE/data?only=data", needs: auth.Read},
	},
	"headData": {{method: "HEAD", path: "/v1/images/IMAGE/data", needs: auth.Read}},
	"getChecksum": {
		{method: "GET", path: "/v1/images/IMAGE/checksum", needs: auth.Read},
		{method: "GET", path: "/v1/images/IMAGE/checksum", header: []string{"Accept", "application/x-ndjson"}, needs: auth.Read},
	},
	"putData":   {{method: "PUT", path: "/v1/images/IMAGE/data", body: "x", header: stale, needs: auth.Write}},
	"zeroData":  {{method: "POST", path: "/v1/images/IMAGE/zero", body: `{"offset":0,"length":512}`, header: stale, needs: auth.Write}},
	"trimData":  {{method: "POST", path: "/v1/images/IMAGE/trim", body: `{"offset":0,"length":512}`, header: stale, needs: auth.Write}},
	"flushData": {{method: "POST", path: "/v1/images/IMAGE/flush", body: `{}`, needs: auth.Write}},
	"checkImage": {
		{method: "POST", path: "/v1/images/IMAGE/check", body: `{}`, needs: auth.Map},
		{method: "POST", path: "/v1/images/IMAGE/check", body: `{"repair":"none"}`, needs: auth.Map},
		{method: "POST", path: "/v1/images/IMAGE/check", body: `{"repair":"leaks"}`, needs: auth.Map | auth.Admin},
		{method: "POST", path: "/v1/images/IMAGE/check", body: `{"repair":"all"}`, needs: auth.Map | auth.Admin},
	},
	"createAllocation":  {{method: "POST", path: "/v1/images/IMAGE/allocations", body: `{"length":512}`, needs: auth.Write}},
	"listAllocations":   {{method: "GET", path: "/v1/images/IMAGE/allocations", needs: auth.Write}},
	"getAllocation":     {{method: "GET", path: "/v1/images/IMAGE/allocations/none", needs: auth.Write}},
	"deleteAllocation":  {{method: "DELETE", path: "/v1/images/IMAGE/allocations/none", needs: auth.Write}},
	"putAllocationData": {{method: "PUT", path: "/v1/images/IMAGE/allocations/none/data", body: "x", needs: auth.Write}},
	"updateMappings": {
		{method: "POST", path: "/v1/images/IMAGE/mappings", body: `{"updates":[{"offset":0,"length":512,"target":{"kind":"zero"}}]}`, header: stale, needs: auth.Write},
	},
	"listBitmaps":  {{method: "GET", path: "/v1/images/IMAGE/bitmaps", needs: auth.Map}},
	"createBitmap": {{method: "POST", path: "/v1/images/IMAGE/bitmaps", body: `{"name":"x"}`, needs: auth.Write}},
	"getBitmap":    {{method: "GET", path: "/v1/images/IMAGE/bitmaps/none", needs: auth.Map}},
	"patchBitmap":  {{method: "PATCH", path: "/v1/images/IMAGE/bitmaps/none", body: `{"enabled":false}`, needs: auth.Write}},
	"deleteBitmap": {{method: "DELETE", path: "/v1/images/IMAGE/bitmaps/none", needs: auth.Write}},
	"clearBitmap":  {{method: "POST", path: "/v1/images/IMAGE/bitmaps/none/clear", body: `{}`, needs: auth.Write}},
	"mergeBitmap":  {{method: "POST", path: "/v1/images/IMAGE/bitmaps/none/merge", body: `{"from":["x"]}`, needs: auth.Write}},
	"changeBitmaps": {
		{method: "POST", path: "/v1/bitmaps", body: `{"changes":[{"image":"IMAGE","operation":"clear","bitmap":"none"}]}`, needs: auth.Write},
		{method: "POST", path: "/v1/bitmaps", body: `{"changes":[{"image":"IMAGE","operation":"delete","bitmap":"none"},{"image":"IMAGE","operation":"create","bitmap":"none"}]}`, needs: auth.Write},
	},
	"listSnapshots":  {{method: "GET", path: "/v1/images/IMAGE/snapshots", needs: auth.Map}},
	"createSnapshot": {{method: "POST", path: "/v1/images/IMAGE/snapshots", body: `{"name":"x"}`, needs: auth.Write}},
	"getSnapshot":    {{method: "GET", path: "/v1/images/IMAGE/snapshots/none", needs: auth.Map}},
	"deleteSnapshot": {{method: "DELETE", path: "/v1/images/IMAGE/snapshots/none", needs: auth.Write}},
	"revertSnapshot": {{method: "POST", path: "/v1/images/IMAGE/snapshots/none/revert", body: `{}`, needs: auth.Write}},
	"getSnapshotExtents": {
		{method: "GET", path: "/v1/images/IMAGE/snapshots/none/extents", needs: auth.Map},
		{method: "GET", path: "/v1/images/IMAGE/snapshots/id:1/extents", header: []string{"Accept", "application/x-ndjson"}, needs: auth.Map},
	},
	"getSnapshotData":  {{method: "GET", path: "/v1/images/IMAGE/snapshots/none/data", needs: auth.Read}},
	"headSnapshotData": {{method: "HEAD", path: "/v1/images/IMAGE/snapshots/none/data", needs: auth.Read}},
	"mintTicket": {
		{method: "POST", path: "/v1/tickets", body: `{"image":"IMAGE","verbs":["map"]}`, needs: auth.Map},
		{method: "POST", path: "/v1/tickets", body: `{"image":"IMAGE","verbs":["read","write"],"ttl":"10m"}`, needs: auth.Read | auth.Write},
		{method: "POST", path: "/v1/tickets", body: `{"image":"IMAGE","verbs":["map","read","write","create","admin"],"ttl":"10m"}`, needs: auth.All},
	},
	"revokeTicket": {{method: "DELETE", path: "/v1/tickets/none", known: true}},
	"getHealth":    {{method: "GET", path: "/healthz", public: true}},
	"getReadiness": {{method: "GET", path: "/readyz", public: true}},
	"getMetrics":   {{method: "GET", path: "/metrics", known: true}},
	"getOpenAPI":   {{method: "GET", path: "/openapi.yaml", public: true}},
}

// TestAccessCoversTheContract: an operation without a row fails.
func TestAccessCoversTheContract(t *testing.T) {
	doc, _ := loadSpec(t)
	inContract := map[string]bool{}
	for path, item := range doc.Paths.Map() {
		for method, op := range item.Operations() {
			inContract[op.OperationID] = true
			rows := accessRows[op.OperationID]
			if len(rows) == 0 {
				t.Errorf("%s: no row says who may call it", op.OperationID)
			}
			for _, row := range rows {
				if row.method != method || !samePath(path, row.path) {
					t.Errorf("%s is %s %s, and its row %s %s", op.OperationID, method, path, row.method, row.path)
				}
				if public := op.Security != nil && len(*op.Security) == 0; public != row.public {
					t.Errorf("%s: the contract says public %v", op.OperationID, public)
				}
			}
		}
	}
	for id := range accessRows {
		if !inContract[id] {
			t.Errorf("%s is not in the contract", id)
		}
	}
}

// samePath reports whether a path is one of the pattern.
func samePath(pattern, path string) bool {
	path, _, _ = strings.Cut(path, "?")
	a, b := strings.Split(pattern, "/"), strings.Split(path, "/")
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] && !strings.HasPrefix(a[i], "{") {
			return false
		}
	}
	return true
}

// guarded starts a server that asks for authentication. Tokens allow each set of
// verbs on mine, and on nothing else.
func guarded(t *testing.T) *fixture {
	t.Helper()
	f, _, _ := guardedBy(t)
	return f
}

// guardedBy is guarded with what it is made of.
func guardedBy(t *testing.T) (*fixture, *auth.Guard, *state.DB) {
	t.Helper()
	var file strings.Builder
	file.WriteString("tokens:\n")
	for v := auth.Verbs(0); v <= auth.All; v++ {
		images, names := mine, v.String()
		if v == 0 {
			images, names = "elsewhere.raw", "map"
		}
		fmt.Fprintf(&file, "- {name: v%d, sha256: %s, grants: [{verbs: [%s], images: [%s]}]}\n", v, hexDigest(tokenFor(v)), names, images)
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
	_, text := loadSpec(t)
	f := start(t, api.Options{Spec: text, Guard: guard, Authenticate: true}, nil)
	for _, name := range []string{mine, theirs} {
		f.random(t, name, 4096)
	}
	return f, guard, db
}

func tokenFor(v auth.Verbs) string { return fmt.Sprintf("token-number-%d", v) }

func hexDigest(secret string) string {
	d := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(d[:])
}

// call makes the call of a row on an image.
func (r *accessRow) call(t *testing.T, f *fixture, image string, headers ...string) answer {
	t.Helper()
	headers = append(headers, r.header...)
	var body []byte
	if r.body != "" {
		body = []byte(strings.ReplaceAll(r.body, "IMAGE", image))
		if strings.HasPrefix(r.body, "{") {
			headers = append(headers, "Content-Type", mediaOf(r.method))
		}
	}
	return f.send(t, r.method, strings.ReplaceAll(r.path, "IMAGE", image), body, headers...)
}

// verdict is what an answer says of the caller: 401, 403 or 404, or 0 for one that
// was let in.
func verdict(a answer, method string) int {
	body := string(a.body)
	switch {
	case a.status == http.StatusUnauthorized, a.status == http.StatusForbidden:
		return a.status
	case a.status == http.StatusNotFound && (method == http.MethodHead || strings.Contains(body, `"detail":"image \"`) || strings.Contains(body, `"detail":"not found: image \"`)):
		return a.status
	}
	return 0
}

// TestAccess asks for everything with every set of verbs: what a caller may not do
// is forbidden, and an image on which it may do nothing is not there.
func TestAccess(t *testing.T) {
	f := guarded(t)
	for id, rows := range accessRows {
		for i := range rows {
			row := &rows[i]
			want := http.StatusUnauthorized
			if row.public {
				want = 0
			}
			for _, headers := range [][]string{nil, {"Authorization", "Basic dTpw"}, {"Authorization", "Bearer"}} {
				if got := verdict(row.call(t, f, mine, headers...), row.method); got != want {
					t.Errorf("%s with %q: %d, want %d", id, headers, got, want)
				}
			}
			for v := auth.Verbs(0); v <= auth.All; v++ {
				header := []string{"Authorization", "Bearer " + tokenFor(v)}
				a := row.call(t, f, mine, header...)
				if got, want := verdict(a, row.method), row.want(id, v); got != want {
					t.Errorf("%s %d with %q on %s: %d, want %d: %d %s", id, i, v, mine, got, want, a.status, a.body)
				}
				a = row.call(t, f, theirs, header...)
				if got, want := verdict(a, row.method), row.want(id, 0); got != want {
					t.Errorf("%s %d with %q on %s: %d, want %d: %d %s", id, i, v, theirs, got, want, a.status, a.body)
				}
			}
		}
	}
}

// want is the verdict on a caller that may do v on the image.
func (r *accessRow) want(id string, v auth.Verbs) int {
	switch {
	case r.public || r.known || v.Has(r.needs):
		return 0
	case v == 0 && id != "createImage": // a name is free, or it is not: nobody else is told
		return http.StatusNotFound
	}
	return http.StatusForbidden
}

// TestUnseenImages: nothing tells an image that one may not see from one that is
// not there.
func TestUnseenImages(t *testing.T) {
	f := guarded(t)
	header := []string{"Authorization", "Bearer " + tokenFor(auth.All)}
	for id, rows := range accessRows {
		for i := range rows {
			row := &rows[i]
			there, absent := row.call(t, f, theirs, header...), row.call(t, f, "absent.raw", header...)
			mask := strings.NewReplacer("theirs.raw", "X", "absent.raw", "X")
			cut := func(body []byte) string {
				text, _, _ := strings.Cut(mask.Replace(string(body)), `"request_id"`)
				return text
			}
			if row.public || row.known {
				continue
			}
			if there.status != absent.status || cut(there.body) != cut(absent.body) {
				t.Errorf("%s: %d %s, and of one that is not there %d %s", id, there.status, there.body, absent.status, absent.body)
			}
		}
	}
}

// TestListsShowWhatIsSeen: a list has the images that the caller may map.
func TestListsShowWhatIsSeen(t *testing.T) {
	f := guarded(t)
	for v := auth.Verbs(0); v <= auth.All; v++ {
		var list api.ImageList
		decode(t, f.expect(t, 200, "/v1/images?limit=1", "Authorization", "Bearer "+tokenFor(v)).body, &list)
		want := 0
		if v.Has(auth.Map) {
			want = 1
		}
		if len(list.Images) != want || want == 1 && list.Images[0].Name != mine || list.Next != nil {
			t.Errorf("with %q: %+v", v, list)
		}
	}
}

// TestCreationNeedsItsBacking: an image shows its backing, so who makes one must
// be allowed to read that; and its data file is an image as well.
func TestCreationNeedsItsBacking(t *testing.T) {
	f := guarded(t)
	create := func(v auth.Verbs, body string) answer {
		return f.send(t, "POST", "/v1/images", []byte(body), "Content-Type", "application/json", "Authorization", "Bearer "+tokenFor(v))
	}
	create(auth.Create, `{"name":"mine.raw","format":"raw","size":1}`).problem(t, 409, "exists")
	create(auth.Create, `{"name":"new.raw","format":"raw","size":1}`).problem(t, 403, "forbidden")
	create(auth.Create, `{"name":"mine.raw","format":"raw","backing":"theirs.raw"}`).problem(t, 422, "backing-unavailable")
	create(auth.Create, `{"name":"mine.raw","format":"raw","backing":"absent.raw"}`).problem(t, 422, "backing-unavailable")
	create(auth.Create, `{"name":"mine.raw","format":"raw","backing":"mine.raw"}`).problem(t, 403, "forbidden")
	create(auth.All, `{"name":"mine.raw","format":"raw","size":1,"data_file":"theirs.raw"}`).problem(t, 403, "forbidden")
}

// TestTicketsAreNotSentBack: a ticket in a path, where its id belongs, is in no
// answer and no log.
func TestTicketsAreNotSentBack(t *testing.T) {
	f := guarded(t)
	const secret = "extentd_ticket_1_AAAA.BBBB"
	for _, path := range []string{"/v1/tickets/" + secret, "/v1/images/" + secret, "/v1/" + secret, "/v1/tickets/extentd%5Fticket_1_AAAA.BBBB"} {
		for _, method := range []string{"DELETE", "GET"} {
			a := f.do(t, method, path, "Authorization", "Bearer "+tokenFor(auth.All))
			if strings.Contains(string(a.body), "BBBB") {
				t.Errorf("%s %s: %s", method, path, a.body)
			}
		}
	}
	if strings.Contains(f.log.String(), "BBBB") {
		t.Errorf("the log:\n%s", f.log)
	}
}
