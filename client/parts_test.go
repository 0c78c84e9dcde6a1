package client_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/extentd/extentd/client"
)

// parted answers with parts, which it cuts off after some bytes; 0: it does not.
func parted(cut int, parts ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("only") == "" { // the rest of a part
			piece(1<<20)(w, r)
			return
		}
		var text bytes.Buffer
		for _, p := range parts {
			var first, last int
			var unit string
			_, _ = fmt.Sscanf(p, "%s %d-%d", &unit, &first, &last)
			fmt.Fprintf(&text, "\r\n--B\r\ncontent-range:%s/1000000\r\nOther: x\r\n\r\n", p)
			for i := first; unit == "bytes" && i <= last; i++ {
				text.WriteByte(byte(i))
			}
		}
		text.WriteString("\r\n--B--\r\n")
		w.Header().Set("Content-Type", `multipart/byteranges; boundary="B"`)
		w.Header().Set("Image-Size", "1000000")
		w.Header().Set("ETag", `"e"`)
		w.WriteHeader(http.StatusOK)
		if cut == 0 {
			_, _ = w.Write(text.Bytes())
			return
		}
		_, _ = w.Write(text.Bytes()[:cut])
		w.(http.Flusher).Flush()
		hangUp(w, r)
	}
}

// TestParts: of an answer that is cut off anywhere, what is missing is asked for, and
// nothing twice.
func TestParts(t *testing.T) {
	all := []string{"bytes 100-299", "zeros 5000-5999", "bytes 7000-7000"}
	want := []string{"100+200", "5000+1000 zeros", "7000+1"}
	for _, cut := range []int{0, 1, 7, 30, 70, 100, 250, 268, 290, 330, 340, 400, 405, 408, 412} {
		answers := []http.HandlerFunc{parted(cut, all...), func(w http.ResponseWriter, r *http.Request) {
			rest := all
			for len(rest) > 0 {
				var unit string
				var first, last, at int64
				_, _ = fmt.Sscanf(rest[0], "%s %d-%d", &unit, &first, &last)
				_, _ = fmt.Sscan(r.URL.Query().Get("offset"), &at)
				if first >= at {
					break
				}
				rest = rest[1:]
			}
			if r.Header.Get("If-Match") != `"e"` && cut > 0 {
				w.WriteHeader(http.StatusTeapot)
				return
			}
			parted(0, rest...)(w, r)
		}}
		f := newFake(t, answers...)
		disk := dial(t, client.Options{URL: f.URL, Patience: 20 * time.Second}).Disk("a")
		var got []string
		size, err := disk.Parts(t.Context(), client.PartsOptions{}, func(p *client.Part) error {
			text := fmt.Sprintf("%d+%d", p.Offset, p.Length)
			if p.Zero {
				text += " zeros"
			}
			data, err := io.ReadAll(p)
			if err != nil {
				return err
			}
			for i, b := range data {
				if b != byte(p.Offset+int64(i)) {
					t.Fatalf("cut at %d: byte %d of %s is %d", cut, i, text, b)
				}
			}
			if int64(len(data)) != p.Length && !p.Zero || p.Zero && len(data) > 0 {
				t.Errorf("cut at %d: %d bytes of %s", cut, len(data), text)
			}
			got = append(got, text)
			return nil
		})
		if err != nil || size != 1000000 || fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("cut at %d: %v, %d, %v", cut, got, size, err)
		}
	}
}

// TestPartsRefused: what is no answer in parts is an error, and so is what its visitor
// says; what is left unread is skipped.
func TestPartsRefused(t *testing.T) {
	none := func(*client.Part) error { return nil }
	for name, answer := range map[string]http.HandlerFunc{
		"backwards":    parted(0, "bytes 100-299", "bytes 200-300"),
		"empty":        parted(0, "bytes 100-99"),
		"beyond":       parted(0, "bytes 0-1000000"),
		"another unit": parted(0, "pages 0-1"),
		"no range":     parted(0, "bytes */7"),
		"not parts":    piece(5),
		"not found":    status(http.StatusNotFound),
		"no size":      status(http.StatusOK, "Content-Type", "multipart/byteranges; boundary=B"),
		"no boundary":  status(http.StatusOK, "Content-Type", "multipart/byteranges", "Image-Size", "1"),
		"something else": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "multipart/byteranges; boundary=B")
			w.Header().Set("Image-Size", "1")
			_, _ = io.WriteString(w, "--C\r\n\r\n")
		},
	} {
		f := newFake(t, answer)
		_, err := dial(t, client.Options{URL: f.URL, Patience: time.Second}).Disk("a").Parts(t.Context(), client.PartsOptions{}, none)
		if err == nil || client.PartsUnknown(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	f := newFake(t, parted(0, "bytes 0-200000", "bytes 300000-300001"))
	disk := dial(t, client.Options{URL: f.URL}).Disk("a")
	parts := 0
	if _, err := disk.Parts(t.Context(), client.PartsOptions{}, func(*client.Part) error { parts++; return nil }); err != nil || parts != 2 {
		t.Errorf("%d parts, %v", parts, err)
	}
	enough := errors.New("enough of it")
	if _, err := disk.Parts(t.Context(), client.PartsOptions{}, func(*client.Part) error { return enough }); err != enough { //nolint:errorlint // as it is
		t.Errorf("%v", err)
	}
}
