package api_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/extentd/extentd/api"
)

func TestZeroAndTrim(t *testing.T) {
	f := start(t, api.Options{}, nil)
	names, content := f.disks(t)
	seed := rand.Uint64()
	t.Logf("seed: %d", seed)
	random := rand.New(rand.NewPCG(seed, 2))
	for _, name := range names {
		model := bytes.Clone(content)
		path := "/v1/images/" + name
		etag := f.do(t, "HEAD", path+"/data").header.Get("Etag")
		for i := range 12 {
			n := 1 + random.IntN(1<<random.IntN(22))
			off := random.IntN(len(model) - n)
			a := f.json(t, "POST", path+"/zero", fmt.Sprintf(`{"offset":%d,"length":%d,"anchor":%t}`, off, n, i%2 == 0)).noContent(t)
			changed := len(bytes.Trim(model[off:off+n], "\x00")) > 0
			clear(model[off : off+n])
			if h := a.header; changed && h.Get("Etag") == etag || h.Get("Accept-Ranges") != "bytes" || h.Get("Block-Size-Minimum") != "1" {
				t.Errorf("%s: %v after %s", name, h, etag)
			}
			etag = a.header.Get("Etag")
		}
		if !bytes.Equal(f.content(t, name), model) {
			t.Errorf("%s differs", name)
		}
		const off, n = 3*mib + 5, mib - 700
		f.put(t, name, off, pattern(1, n)).noContent(t)
		copy(model[off:], pattern(1, n))
		f.json(t, "POST", path+"/trim", fmt.Sprintf(`{"offset":%d,"length":%d}`, off, n), "If-Match", "*").noContent(t)
		got := f.content(t, name)
		if !bytes.Equal(got[:off], model[:off]) || !bytes.Equal(got[off+n:], model[off+n:]) {
			t.Errorf("%s: a trim changed what is outside its range", name)
		}
		for i, b := range got[off : off+n] {
			if b != 0 && b != model[off+i] {
				t.Fatalf("%s: after a trim, byte %d is neither 0 nor what it was", name, off+i)
			}
		}
		f.json(t, "POST", path+"/flush", `{}`).noContent(t)
		f.json(t, "POST", path+"/zero", fmt.Sprintf(`{"offset":0,"length":%d}`, diskSize)).noContent(t)
		if len(bytes.Trim(f.content(t, name), "\x00")) > 0 {
			t.Errorf("%s is not zero", name)
		}
	}
}

// What is wrong with a body is told, and nothing is changed.
func TestChangeRefused(t *testing.T) {
	f := start(t, api.Options{}, nil)
	f.disks(t)
	for _, name := range []string{"disk.raw", "over.qcow2"} {
		path := "/v1/images/" + name
		before := f.state(t, name)
		for _, call := range []string{"/zero", "/trim"} {
			for body, want := range map[string]string{
				``:                                    "body syntax",
				`{`:                                   "body syntax",
				`[]`:                                  "body type",
				`{"offset":0,"length":1} x`:           "body syntax",
				`{}`:                                  "length required, offset required",
				`{"offset":0}`:                        "length required",
				`{"offset":0,"lengths":1,"length":1}`: "lengths unknown",
				`{"offset":0,"length":0}`:             "length min",
				`{"offset":-1,"length":-1}`:           "length min, offset min",
				`{"offset":0,"length":1,"length":1}`:  "length repeated",
				`{"offset":"0","length":1}`:           "offset type",
				`{"offset":0.5,"length":1}`:           "offset type",
				`{"offset":null,"length":1}`:          "offset type",
				`{"offset":0,"length":9223372036854775808}`:       "length max",
				`{"offset":0,"length":9223372036854775807}`:       "out-of-range",
				`{"offset":9223372036854775807,"length":1}`:       "out-of-range",
				fmt.Sprintf(`{"offset":%d,"length":1}`, diskSize): "out-of-range",
				fmt.Sprintf(`{"offset":1,"length":%d}`, diskSize): "out-of-range",
			} {
				a := f.json(t, "POST", path+call, body)
				if want == "out-of-range" {
					a.problem(t, 400, want)
				} else if got := faults(a.problem(t, 400, "invalid-request")); got != want {
					t.Errorf("%s %s: %s, want %s", call, body, got, want)
				}
			}
			const good = `{"offset":0,"length":512}`
			f.json(t, "POST", path+call, good, "If-Match", `"other"`).problem(t, 412, "precondition-failed")
			f.json(t, "POST", path+call, good, "If-Match", ``).problem(t, 412, "precondition-failed")
			f.json(t, "POST", path+call, good, "If-None-Match", `*`).problem(t, 412, "precondition-failed")
			f.json(t, "POST", path+call+"?x=1", good).problem(t, 400, "invalid-request")
			f.json(t, "POST", path+call, strings.Repeat(" ", 1<<20)+good).problem(t, 413, "too-large")
			f.json(t, "POST", path+call, good, "Content-Encoding", "gzip").problem(t, 415, "unsupported-media-type")
		}
		f.json(t, "POST", path+"/flush", `{"all":true}`).problem(t, 400, "invalid-request")
		if f.state(t, name) != before {
			t.Errorf("%s has changed", name)
		}
	}
	f.json(t, "POST", "/v1/images/nothing.raw/zero", `{"offset":0,"length":1}`).problem(t, 404, "not-found")
}

// faults is what a problem says of fields, in order.
func faults(p api.Problem) string {
	var all []string
	if p.Errors != nil {
		for _, e := range *p.Errors {
			all = append(all, e.Field+" "+e.Rule)
		}
	}
	return strings.Join(all, ", ")
}

// A body is JSON and says so, whichever call it is for.
func TestContentTypes(t *testing.T) {
	f := start(t, api.Options{}, nil)
	f.random(t, "disk.raw", 4096)
	for _, test := range []struct {
		method, path, body string
		status             int
	}{
		{"POST", "/v1/images/disk.raw/zero", `{"offset":0,"length":1}`, 204},
		{"POST", "/v1/images/disk.raw/flush", `{}`, 204},
		{"PATCH", "/v1/images/disk.raw", `{}`, 200},
	} {
		for given, ok := range map[string]bool{
			"": false, "text/plain": false, "application/x-www-form-urlencoded": false, "application/json-patch+json": false, "application/jsonx": false,
			"application/json; charset=latin1": false, "multipart/form-data; boundary=x": false, "*/*": false, ";": false,
			"application/json": true, "Application/JSON": true, "application/json; charset=UTF-8": true,
			"application/merge-patch+json": test.method == "PATCH",
		} {
			var headers []string
			if given != "" {
				headers = []string{"Content-Type", given}
			}
			a := f.send(t, test.method, test.path, []byte(test.body), headers...)
			if ok {
				if a.status != test.status {
					t.Errorf("%s %s, %s: %d\n%s", test.method, test.path, given, a.status, a.body)
				}
				continue
			}
			a.problem(t, 415, "unsupported-media-type")
			accept, want := a.header.Get("Accept-Post"), "application/json"
			if test.method == "PATCH" {
				accept, want = a.header.Get("Accept-Patch"), "application/merge-patch+json, application/json"
			}
			if accept != want {
				t.Errorf("%s %s: %v", test.method, test.path, a.header)
			}
		}
	}
}
