package http_test

import (
	"encoding/json"
	"errors"
	"fmt"
	nethttp "net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/http"
)

const imagePath = "/v1/images/disk.raw/data"

// mapping answers requests for the map, and leaves all others to the site.
func mapping(answer nethttp.HandlerFunc) hook {
	return func(w nethttp.ResponseWriter, r *nethttp.Request) bool {
		if r.URL.Path != "/v1/images/disk.raw/extents" {
			return false
		}
		answer(w, r)
		return true
	}
}

func sendJSON(w nethttp.ResponseWriter, text string) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	_, _ = w.Write([]byte(text))
}

// extents is JSON for extents "OFFSET+LENGTH:BITS" of a file.
func extents(size int64, list ...string) string {
	var b strings.Builder
	for i, e := range list {
		var off, n int64
		var bits string
		if _, err := fmt.Sscanf(e, "%d+%d:%s", &off, &n, &bits); err != nil {
			panic(err)
		}
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `{"offset":%d,"length":%d,"local":%v,"zero":%v,"alloc":%v,"offset_valid":%v,"depth":0}`,
			off, n, strings.Contains(bits, "L"), strings.Contains(bits, "Z"), strings.Contains(bits, "A"), strings.Contains(bits, "O"))
	}
	return fmt.Sprintf(`{"size":%d,"generation":"g","extents":[%s]}`, size, b.String())
}

// mapOf is the map of [off, size) as lines "OFFSET+LENGTH: BITS".
func mapOf(t testing.TB, f *http.File, off, size int64) []string {
	t.Helper()
	node := storage.NewNode("node", f, storage.NodeOptions{Check: true})
	var lines []string
	var l storage.ExtentList
	for off < size {
		l.Reset()
		if err := node.Extents(t.Context(), off, size-off, &l); err != nil {
			t.Fatal(err)
		}
		for i := range l.Len() {
			m := l.At(i)
			if m.Offset != off || m.Status.Has(storage.OffsetValid) && m.NodeOffset != off {
				t.Fatalf("extent %+v at %d", *m, off)
			}
			lines = append(lines, fmt.Sprintf("%d+%d: %v", m.Offset, m.Length, m.Status))
			off = m.End()
		}
	}
	return lines
}

// What another extentd says in its words, and what it is in those of a node.
func TestMap(t *testing.T) {
	const size = 1000
	s := serve(t, make([]byte, size))
	s.set(func(s *site) {
		s.hook = mapping(func(w nethttp.ResponseWriter, r *nethttp.Request) {
			if q := r.URL.Query(); q.Get("limit") != "1000" || q.Get("token") != "x" || r.Header.Get("If-Match") != "" || r.Header.Get("Accept") != "application/json" {
				t.Errorf("asked for %v with %v", q, r.Header)
			}
			all := []string{"0+100:LAO", "100+100:LA", "200+100:LZAO", "300+100:LZO", "400+100:LZA", "500+100:LZ", "600+100:Z", "700+100:ZAO", "800+200:LAO"}
			switch r.URL.Query().Get("offset") {
			case "0":
				sendJSON(w, extents(size, all[:4]...))
			case "400":
				sendJSON(w, extents(size, all[4:]...))
			default:
				t.Errorf("asked for %s", r.URL.RawQuery)
			}
		})
	})
	want := []string{
		"0+200: - - A O", "200+100: - Z A O", "300+100: - Z - O",
		"400+100: - Z A O", "500+200: - Z - O", "700+100: - Z A O", "800+200: - - A O",
	}
	f := openFile(t, local(s.URL+imagePath+"?token=x"))
	if diff := cmp.Diff(want, mapOf(t, f, 0, size)); diff != "" {
		t.Error(diff)
	}
	before := s.requests.Load()
	if diff := cmp.Diff([]string{"650+50: - Z - O", "700+100: - Z A O", "800+200: - - A O"}, mapOf(t, f, 650, size)); diff != "" {
		t.Error(diff)
	}
	if n := s.requests.Load() - before; n != 0 {
		t.Errorf("%d requests for what is known", n)
	}
	var l storage.ExtentList
	if err := f.Extents(t.Context(), 650, 10, &l); err != nil || l.Len() != 1 || l.Start() != 650 || l.End() != 700 {
		t.Errorf("%d extents, %d to %d, %v", l.Len(), l.Start(), l.End(), err)
	}
	l.ResetWindow(450, 460)
	if err := f.Extents(t.Context(), 450, 10, &l); err != nil || l.Len() != 1 || l.Start() != 450 || l.End() != 500 {
		t.Errorf("%d extents, %d to %d, %v", l.Len(), l.Start(), l.End(), err)
	}
}

// What is known of the map costs no memory to tell.
func TestMapAllocates(t *testing.T) {
	s := serve(t, make([]byte, 1000))
	s.set(func(s *site) {
		s.hook = mapping(func(w nethttp.ResponseWriter, _ *nethttp.Request) {
			sendJSON(w, extents(1000, "0+10:LZ", "10+10:LAO", "20+10:LZ", "30+970:LAO"))
		})
	})
	f := openFile(t, local(s.URL+imagePath))
	var l storage.ExtentList
	ask := func() {
		l.Reset()
		if err := f.Extents(t.Context(), 0, 1000, &l); err != nil || l.Len() != 4 {
			t.Error(l.Len(), err)
		}
	}
	ask()
	if n := testing.AllocsPerRun(100, ask); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// A map that makes no sense is none, and where there is none all is data. The
// reads go on.
func TestOddMaps(t *testing.T) {
	const size = 1000
	good := extents(size, "0+1000:LZ")
	many := make([]string, 0, 1001)
	for i := range 1000 {
		many = append(many, fmt.Sprintf("%d+1:%s", i, []string{"LZ", "LAO"}[i%2]))
	}
	text := func(text string) nethttp.HandlerFunc {
		return func(w nethttp.ResponseWriter, _ *nethttp.Request) { sendJSON(w, text) }
	}
	header := func(name, value string, status int) nethttp.HandlerFunc {
		return func(w nethttp.ResponseWriter, _ *nethttp.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set(name, value)
			w.WriteHeader(status)
			_, _ = w.Write([]byte(good))
		}
	}
	for name, answer := range map[string]nethttp.HandlerFunc{
		"not found":     header("X", "", 404),
		"busy":          header("X", "", 503),
		"not allowed":   header("X", "", 403),
		"refused":       header("X", "", 400),
		"no content":    header("X", "", 204),
		"html":          header("Content-Type", "text/html", 200),
		"lines":         header("Content-Type", "application/x-ndjson", 200),
		"no type":       header("Content-Type", "", 200),
		"encoded":       header("Content-Encoding", "gzip", 200),
		"not json":      text("<html>"),
		"nothing":       text(""),
		"null":          text("null"),
		"more":          text(good + good),
		"cut off":       text(good[:len(good)-1]),
		"array":         text("[" + good + "]"),
		"no size":       text(strings.Replace(good, `"size":1000,`, "", 1)),
		"other size":    text(extents(999, "0+999:LZ")),
		"no extents":    text(extents(size)),
		"starts late":   text(extents(size, "1+999:LZ")),
		"starts early":  text(extents(size, "-1+1001:LZ")),
		"gap":           text(extents(size, "0+10:LZ", "11+989:LAO")),
		"overlap":       text(extents(size, "0+10:LZ", "9+991:LAO")),
		"backward":      text(extents(size, "0+10:LZ", "0+10:LAO")),
		"empty extent":  text(extents(size, "0+10:LZ", "10+0:LZ")),
		"negative":      text(extents(size, "0+10:LZ", "10+-5:LZ")),
		"past the end":  text(extents(size, "0+1001:LZ")),
		"overflow":      text(extents(size, "0+10:LZ", "10+9223372036854775807:LZ")),
		"too large":     text(strings.Replace(good, `"length":1000`, `"length":9223372036854775808`, 1)),
		"fraction":      text(strings.Replace(good, `"length":1000`, `"length":1000.5`, 1)),
		"text":          text(strings.Replace(good, `"zero":true`, `"zero":"true"`, 1)),
		"no zero":       text(strings.Replace(good, `"zero":true,`, "", 1)),
		"zero is null":  text(strings.Replace(good, `"zero":true`, `"zero":null`, 1)),
		"no alloc":      text(strings.Replace(good, `"alloc":false,`, "", 1)),
		"contradiction": text(extents(size, "0+10:LZ", "10+990:AO")),
		"too many":      text(extents(size, append(many[:999:999], "999+1:LAO", "1000+1:LZ")...)),
		"too long":      text(`{"filler":"` + strings.Repeat("x", 2<<20) + `",` + good[1:]),
		"endless": func(w nethttp.ResponseWriter, r *nethttp.Request) {
			w.Header().Set("Content-Type", "application/json")
			for r.Context().Err() == nil {
				_, _ = w.Write(make([]byte, 1<<20))
			}
		},
		"dies":       func(nethttp.ResponseWriter, *nethttp.Request) { panic(nethttp.ErrAbortHandler) },
		"dies later": header("Content-Length", "5000", 200),
		"loops":      header("Location", "/v1/images/disk.raw/extents", 302),
		"late":       func(_ nethttp.ResponseWriter, r *nethttp.Request) { <-r.Context().Done() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, make([]byte, size))
			s.hook = mapping(answer)
			s.Config.ErrorLog = quiet
			s.Start()
			opt := local(s.URL + imagePath)
			if name == "late" {
				opt.Timeout = 100 * time.Millisecond
			}
			f := openFile(t, opt)
			if diff := cmp.Diff([]string{"0+1000: - - A O"}, mapOf(t, f, 0, size)); diff != "" {
				t.Error(diff)
			}
			before := s.requests.Load()
			if diff := cmp.Diff([]string{"17+983: - - A O"}, mapOf(t, f, 17, size)); diff != "" || s.requests.Load() != before {
				t.Errorf("it is asked again at once: %s", diff)
			}
			if _, err := f.ReadAt(t.Context(), make([]byte, 10), 0); err != nil {
				t.Error(err)
			}
		})
	}
}

// A map is worth nothing once the data is another, nor where it cannot be told.
func TestMapOfAnotherVersion(t *testing.T) {
	const size = 1000
	for name, at := range map[string]struct {
		after func(*site) // what happens while the map is on its way
		want  error       // nil: data
	}{
		"changed":      {func(s *site) { s.etag = `"two"` }, storage.ErrChanged},
		"other size":   {func(s *site) { s.content = make([]byte, 1001) }, storage.ErrChanged},
		"unavailable":  {func(s *site) { s.hook = onHead(503, nil) }, nil},
		"removed":      {func(s *site) { s.hook = onHead(404, nil) }, nil},
		"no validator": {func(s *site) { s.etag = "" }, storage.ErrChanged}, // If-Match is not met
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, make([]byte, size))
			s.set(func(s *site) {
				s.hook = mapping(func(w nethttp.ResponseWriter, _ *nethttp.Request) {
					s.set(at.after)
					sendJSON(w, extents(size, "0+1000:LZ"))
				})
			})
			f := openFile(t, local(s.URL+imagePath))
			var l storage.ExtentList
			err := f.Extents(t.Context(), 0, size, &l)
			if !errors.Is(err, at.want) {
				t.Fatalf("%v, want %v", err, at.want)
			}
			if err != nil && l.Len() > 0 || err == nil && (l.Len() != 1 || l.At(0).Status.Has(storage.Zero)) {
				t.Errorf("%d extents", l.Len())
			}
		})
	}
}

// The map of another host may be of another version with the same size.
func TestMapOfAnotherHost(t *testing.T) {
	const size = 1000
	other := serve(t, make([]byte, size))
	other.set(func(s *site) {
		s.hook = mapping(func(w nethttp.ResponseWriter, _ *nethttp.Request) { sendJSON(w, extents(size, "0+1000:LZ")) })
	})
	s := serve(t, random(t, size))
	s.set(func(s *site) {
		s.hook = mapping(func(w nethttp.ResponseWriter, r *nethttp.Request) {
			nethttp.Redirect(w, r, other.URL+r.URL.String(), nethttp.StatusFound)
		})
	})
	f := openFile(t, local(s.URL+imagePath))
	if diff := cmp.Diff([]string{"0+1000: - - A O"}, mapOf(t, f, 0, size)); diff != "" {
		t.Error(diff)
	}
	if other.requests.Load() != 1 {
		t.Errorf("the other host was asked %d times", other.requests.Load())
	}
}

// Of what is no extentd nobody asks for a map.
func TestNoMap(t *testing.T) {
	for _, path := range []string{"/f", "/v1/images/data", "/v1/images//data", "/v1/images/a/b/data", "/data", "/v1/images/disk.raw/data/"} {
		s := serve(t, make([]byte, 10))
		f := openFile(t, local(s.URL+path))
		before := s.requests.Load()
		if diff := cmp.Diff([]string{"0+10: - - A O"}, mapOf(t, f, 0, 10)); diff != "" || s.requests.Load() != before {
			t.Errorf("%s: %d requests, %s", path, s.requests.Load()-before, diff)
		}
	}
}

func FuzzParseMap(f *testing.F) {
	f.Add([]byte(extents(1000, "0+10:LZ", "10+990:LAO")), int64(0), int64(1000))
	f.Add([]byte(extents(1000, "10+10:ZAO", "20+9223372036854775807:LAO")), int64(10), int64(1000))
	f.Add([]byte(`{"size":1,"extents":[{"offset":0,"length":1,"local":true,"zero":true,"alloc":true,"x":[]}],"next":5}`), int64(0), int64(1))
	f.Fuzz(func(t *testing.T, text []byte, off, size int64) {
		if off < 0 || size <= off || size > storage.MaxSize {
			return
		}
		ends, statuses, err := http.ParseMap(text, off, size)
		if err != nil {
			return
		}
		if !json.Valid(text) || len(ends) == 0 || ends[len(ends)-1] > size {
			t.Fatalf("extents up to %v of %d", ends, size)
		}
		for i, end := range ends {
			if end <= off || strings.Contains("- - A O|- Z - O|- Z A O", statuses[i]) != true {
				t.Fatalf("extent %d to %d is %s", off, end, statuses[i])
			}
			off = end
		}
	})
}
