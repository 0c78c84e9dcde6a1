package api_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/crypto/blake2b"

	"github.com/extentd/extentd/api"
	"github.com/extentd/extentd/auth"
)

// Real answers of every call and of every status keep to the contract.
func TestImageioKeepsItsContract(t *testing.T) {
	f := startDialects(t, api.Options{})
	c := &contract{t: t, f: f, doc: loadDialect(t, "imageio"), seen: map[string]bool{}}
	const one = "/images/{ticket}"
	rw := f.ticket(t, "disk.raw", auth.Map|auth.Read|auth.Write)
	gone := f.ticket(t, "dgone.raw", auth.Map|auth.Read|auth.Write)
	corrupt := f.ticket(t, "dcorrupt.qcow2", auth.Map|auth.Read|auth.Write)
	dirty := f.ticket(t, "dirty.qcow2", auth.Map)
	none := f.ticket(t, "disk.raw", auth.Create)
	c.check(200, "OPTIONS", one, "", "ticket", "*")
	c.check(200, "OPTIONS", one, "", "ticket", rw)
	c.check(404, "OPTIONS", one, "", "ticket", gone)
	for _, op := range []struct{ method, pattern, body string }{
		{"OPTIONS", one, ""},
		{"GET", one, ""},
		{"HEAD", one, ""},
		{"PUT", one, "x"},
		{"PATCH", one, `{"op":"flush"}`},
		{"GET", one + "/extents", ""},
		{"GET", one + "/checksum", ""},
	} {
		c.check(403, op.method, op.pattern, "", "ticket", none, "body", op.body)
		c.check(403, op.method, op.pattern, "", "ticket", "no-such-ticket", "body", op.body)
		if op.method != "HEAD" {
			c.check(404, op.method, op.pattern, "", "ticket", gone, "body", op.body)
			if a := f.send(t, op.method, strings.Replace(op.pattern, "{ticket}", corrupt, 1), []byte(op.body)); a.status != 422 {
				t.Errorf("%s %s of a corrupt image: %d", op.method, op.pattern, a.status)
			}
		}
	}
	etag := c.check(200, "GET", one, "?close=y", "ticket", rw).header.Get("ETag")
	c.check(206, "GET", one, "", "ticket", rw, "Range", "bytes=5-9")
	c.check(304, "GET", one, "", "ticket", rw, "If-None-Match", etag)
	c.check(416, "GET", one, "", "ticket", rw, "Range", "bytes=0-100000")
	c.check(200, "HEAD", one, "", "ticket", rw)
	c.check(200, "PUT", one, "?flush=n", "ticket", rw, "body", "abc", "Content-Range", "bytes 7-9/*")
	c.check(400, "PUT", one, "?flush=x", "ticket", rw, "body", "abc")
	for _, method := range []string{"GET", "PUT"} {
		c.check(412, method, one, "", "ticket", rw, "body", "abc", "If-Match", `"stale"`)
	}
	c.check(416, "PUT", one, "", "ticket", rw, "body", "abc", "Content-Range", "bytes 99998-*/*")
	c.check(200, "PATCH", one, "", "ticket", rw, "body", `{"op":"zero","size":10,"offset":5,"flush":true}`)
	c.check(200, "PATCH", one, "", "ticket", rw, "body", `{"op":"flush"}`)
	c.check(400, "PATCH", one, "", "ticket", rw, "body", `{"op":"trim"}`)
	c.check(412, "PATCH", one, "", "ticket", rw, "body", `{"op":"zero","size":1}`, "If-Match", `"stale"`)
	c.check(413, "PATCH", one, "", "ticket", rw, "body", `{"op":"`+strings.Repeat("x", 5000)+`"}`)
	c.check(416, "PATCH", one, "", "ticket", rw, "body", `{"op":"zero","size":100001}`)
	c.check(200, "GET", one+"/extents", "", "ticket", rw)
	c.check(200, "GET", one+"/extents", "?context=dirty", "ticket", dirty)
	c.check(400, "GET", one+"/extents", "?context=x", "ticket", rw)
	c.check(404, "GET", one+"/extents", "?context=dirty", "ticket", rw)
	crashed := f.ticket(t, "dcrash.qcow2", auth.Map)
	c.check(409, "GET", one+"/extents", "?context=dirty", "ticket", crashed+"@crashed")
	c.check(404, "GET", one+"/extents", "?context=dirty", "ticket", crashed) // QEMU had all of them open
	c.check(200, "GET", one+"/checksum", "?algorithm=sha256", "ticket", rw)
	c.check(400, "GET", one+"/checksum", "?algorithm=md5", "ticket", rw)
	c.check(200, "GET", one+"/checksum/algorithms", "", "ticket", "x")
	c.check(200, "GET", "/imageio/openapi.yaml", "")
	c.complete(map[string]bool{
		"getOptions default": true, "getImage default": true, "headImage default": true, "putImage default": true,
		"patchImage default": true, "getExtents default": true, "getChecksum default": true, "getAlgorithms default": true,
	})
}

// The verbs of a ticket decide.
func TestImageioTickets(t *testing.T) {
	f := startDialects(t, api.Options{})
	calls := []struct {
		method, path, body string
		needs              []auth.Verbs // one of them
	}{
		{"OPTIONS", "", "", []auth.Verbs{auth.Map, auth.Read, auth.Write}},
		{"GET", "", "", []auth.Verbs{auth.Read}},
		{"HEAD", "", "", []auth.Verbs{auth.Read}},
		{"PUT", "", "x", []auth.Verbs{auth.Write}},
		{"PATCH", "", `{"op":"zero","size":1}`, []auth.Verbs{auth.Write}},
		{"PATCH", "", `{"op":"flush"}`, []auth.Verbs{auth.Write}},
		{"GET", "/extents", "", []auth.Verbs{auth.Map, auth.Read}},
		{"GET", "/checksum", "", []auth.Verbs{auth.Read}},
	}
	for v := auth.Verbs(1); v <= auth.All; v++ {
		ticket := f.ticket(t, "disk.qcow2", v)
		for _, call := range calls {
			want := http.StatusForbidden
			for _, need := range call.needs {
				if v.Has(need) {
					want = http.StatusOK
				}
			}
			if a := f.send(t, call.method, "/images/"+ticket+call.path, []byte(call.body)); a.status != want {
				t.Errorf("%s %s with %v: %d, want %d: %s", call.method, call.path, v, a.status, want, a.body)
			}
		}
		var options struct{ Features []string }
		a := f.do(t, "OPTIONS", "/images/"+ticket)
		if a.status == http.StatusOK {
			if err := json.Unmarshal(a.body, &options); err != nil {
				t.Fatal(err)
			}
		}
		for feature, need := range map[string]auth.Verbs{"checksum": auth.Read, "zero": auth.Write, "flush": auth.Write} {
			if strings.Contains(string(a.body), `"`+feature+`"`) != v.Has(need) {
				t.Errorf("%v: %s", v, a.body)
			}
		}
	}
}

// Tickets that are not good are refused alike, and so is everything else that
// callers present.
func TestImageioHostileTickets(t *testing.T) {
	f := startDialects(t, api.Options{})
	good := f.ticket(t, "disk.raw", auth.All)
	for what, ticket := range map[string]string{
		"cut": good[:40], "no end": good[:strings.IndexByte(good, '.')+1], "prefix": "extentd_ticket_1_", "twice": good + good,
		"changed": strings.Replace(good, ".", "A.", 1), "a token": tokenFor(auth.All), "encoded twice": strings.ReplaceAll(good, "_", "%255F"),
		"long": "extentd_ticket_1_" + strings.Repeat("A", 9000), "NUL": good + "%00", "line": good + "%0A", "dots": "%2e%2e", "slash": good + "%2F",
		"bitmap alone": "@b", "the image": "disk.raw", "upper": strings.ToUpper(good), "not UTF-8": "%ff%fe",
	} {
		for _, method := range []string{"GET", "OPTIONS", "PUT", "PATCH"} {
			a := f.do(t, method, "/images/"+ticket, "Authorization", "Bearer "+tokenFor(auth.All))
			if a.status == http.StatusTooManyRequests {
				continue
			}
			a.refusal(t, what+" "+method, http.StatusForbidden)
			if a.header.Get("WWW-Authenticate") != "" {
				t.Errorf("%s: %v", what, a.header)
			}
		}
	}
	if a := f.get(t, "/images/"+strings.ReplaceAll(good, "_", "%5F")); a.status != http.StatusOK {
		t.Errorf("an encoded ticket: %d %s", a.status, a.body)
	}
	f.get(t, "/images/"+good+"/none").refusal(t, "no path", http.StatusNotFound)
	f.do(t, "DELETE", "/images/"+good).refusal(t, "no method", http.StatusMethodNotAllowed)
}

// What is not as it must be is refused, and changes nothing.
func TestImageioBadInput(t *testing.T) {
	f := startDialects(t, api.Options{})
	url := "/images/" + f.ticket(t, "disk.raw", auth.All)
	before := f.expect(t, 200, url).body
	for _, header := range []string{
		"bytes=-", "bytes=", "bytes", "0-5", "bytes 0-5", "Bytes=0-5", "bytes=5-4", "bytes=a-5", "bytes=0-5,7-9", "bytes=+0-5", "bytes=0--5",
		"bytes=100000-", "bytes=0-100000", "bytes=-0", "bytes=-100001", "bytes=99999999999999999999-", "bytes=0-99999999999999999999", "lines=0-5",
	} {
		a := f.get(t, url, "Range", header)
		a.refusal(t, header, http.StatusRequestedRangeNotSatisfiable)
		if a.header.Get("Content-Range") != "bytes */100000" {
			t.Errorf("%s: %v", header, a.header)
		}
	}
	for header, want := range map[string]int{
		"bytes 0-": 400, "bytes 0-5": 400, "0-5/*": 400, "bytes 5-4/*": 400, "bytes */*": 400, "bytes -5/*": 400, "bytes 0-5/5": 400, "bytes x-5/*": 400,
		"bytes=0-5/*": 400, "bytes 99998-100000/*": 416, "bytes 99999999999999999999-*/*": 416, "bytes 100001-*/*": 416,
	} {
		f.send(t, "PUT", url, []byte("abc"), "Content-Range", header).refusal(t, header, want)
	}
	for body, want := range map[string]int{
		"": 400, "null": 400, "[]": 400, `"zero"`: 400, "{": 400, "{}": 400, `{"op":1}`: 400, `{"op":"Zero","size":1}`: 400, `{"op":"zero"}`: 400,
		`{"op":"zero","size":-1}`: 400, `{"op":"zero","size":"1"}`: 400, `{"op":"zero","size":1.0}`: 400, `{"op":"zero","size":1e3}`: 400, `{"op":"zero","size":null}`: 400,
		`{"op":"zero","size":1,"offset":-1}`: 400, `{"op":"zero","size":1,"offset":true}`: 400, `{"op":"zero","size":1,"flush":"y"}`: 400, `{"op":"zero","size":1,"flush":1}`: 400,
		`{"op":"zero","size":100001}`: 416, `{"op":"zero","size":1,"offset":100000}`: 416, `{"op":"zero","size":99999999999999999999}`: 416,
		`{"op":"zero","size":9223372036854775807,"offset":9223372036854775807}`: 416,
	} {
		f.send(t, "PATCH", url, []byte(body)).refusal(t, body, want)
	}
	f.send(t, "PUT", url, []byte("abc"), "Content-Encoding", "gzip").refusal(t, "gzip", http.StatusUnsupportedMediaType)
	for _, query := range []string{"?flush=Y", "?flush=", "?flush=y&flush=n", "?flush=%zz", "?flush=n;close=y"} {
		f.send(t, "PUT", url+query, []byte("abc")).refusal(t, query, http.StatusBadRequest)
	}
	for _, query := range []string{"block_size=1", "block_size=x", "block_size=1048577", "block_size=16777217", "block_size=", "algorithm=", "algorithm=sha1", "algorithm=SHA256"} {
		f.get(t, url+"/checksum?"+query).refusal(t, query, http.StatusBadRequest)
	}
	if after := f.expect(t, 200, url).body; !bytes.Equal(before, after) {
		t.Error("what was refused has changed the image")
	}
}

// The bitmap is the one that the path names, or the only one.
func TestImageioDirty(t *testing.T) {
	f := startDialects(t, api.Options{})
	url := "/images/" + f.ticket(t, "dirty.qcow2", auth.Read)
	type extent struct {
		Start, Length int64
		Dirty, Zero   bool
	}
	want := []extent{{0, 65536, true, false}, {65536, 1<<20 - 65536, false, true}, {1 << 20, 65536, true, true}, {1<<20 + 65536, 3<<20 - 65536, false, true}}
	for _, path := range []string{url, url + "@first", url + "%40first"} {
		var got []extent
		decode(t, f.expect(t, 200, path+"/extents?context=dirty").body, &got)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", path, diff)
		}
	}
	f.get(t, url+"@/extents?context=dirty").refusal(t, "no name", http.StatusBadRequest)
	f.get(t, url+"@none/extents?context=dirty").refusal(t, "no bitmap", http.StatusNotFound)
	url = "/images/" + f.ticket(t, "dtwo.qcow2", auth.Read)
	f.get(t, url+"/extents?context=dirty").refusal(t, "two bitmaps", http.StatusNotFound)
	var got []extent
	decode(t, f.expect(t, 200, url+"@a@b%252F%2Fc/extents?context=dirty").body, &got)
	if len(got) < 2 || got[0].Dirty {
		t.Errorf("%v", got)
	}
	f.get(t, "/images/"+f.ticket(t, "disk.raw", auth.Map)+"@x/extents?context=dirty").refusal(t, "raw", http.StatusNotFound)
}

// The checksum is that of the digests of all blocks, however much is zero.
func TestImageioChecksum(t *testing.T) {
	f := startDialects(t, api.Options{})
	f.qemu(t, "qemu-img", "create", "-q", "-f", "qcow2", "dsum.qcow2", "20972032") // 20 MiB and 512 bytes
	f.qemu(t, "qemu-io", "-f", "qcow2", "-c", "write -P 1 1000k 100k", "-c", "write -P 2 9M 64k", "-c", "write -P 0 12M 64k", "dsum.qcow2")
	f.qemu(t, "qemu-img", "convert", "-O", "raw", "dsum.qcow2", "dsum.raw")
	content, err := os.ReadFile(filepath.Join(f.dir, "dsum.raw"))
	if err != nil {
		t.Fatal(err)
	}
	for _, image := range []string{"dsum.qcow2", "dsum.raw"} {
		url := "/images/" + f.ticket(t, image, auth.Read) + "/checksum"
		for _, block := range []int{1 << 20, 1<<20 + 4096, 4 << 20, 16 << 20} {
			var blake, sha []byte
			for at := 0; at < len(content); at += block {
				part := content[at:min(at+block, len(content))]
				b, s := blake2b.Sum256(part), sha256.Sum256(part)
				blake, sha = append(blake, b[:]...), append(sha, s[:]...)
			}
			b, s := blake2b.Sum256(blake), sha256.Sum256(sha)
			for algorithm, sum := range map[string][]byte{"blake2b": b[:], "sha256": s[:]} {
				want := fmt.Sprintf(`{"algorithm":%q,"block_size":%d,"checksum":%q}`+"\n", algorithm, block, hex.EncodeToString(sum))
				if got := f.expect(t, 200, fmt.Sprintf("%s?algorithm=%s&block_size=%d", url, algorithm, block)).body; string(got) != want {
					t.Errorf("%s: %s, want %s", image, got, want)
				}
			}
		}
	}
}
