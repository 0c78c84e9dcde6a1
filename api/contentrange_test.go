package api

import (
	"errors"
	"fmt"
	"math"
	"net/http"
	"regexp"
	"testing"

	"github.com/extentd/extentd/storage"
)

func TestBodyRange(t *testing.T) {
	const size = 1000
	for _, test := range []struct {
		given []string
		want  byteRange
		err   error
	}{
		{nil, byteRange{0, size}, nil},
		{[]string{"bytes 0-0/*"}, byteRange{0, 1}, nil},
		{[]string{"bytes 0-999/*"}, byteRange{0, size}, nil},
		{[]string{"bytes 10-19/1000"}, byteRange{10, 10}, nil},
		{[]string{"Bytes 999-999/1000"}, byteRange{999, 1}, nil},
		{[]string{"bytes 0-1/*", "bytes 0-1/*"}, byteRange{}, errInvalid},
		{[]string{""}, byteRange{}, errInvalid},
		{[]string{"bytes"}, byteRange{}, errInvalid},
		{[]string{"bytes=0-9/*"}, byteRange{}, errInvalid},
		{[]string{"bytes 0-9"}, byteRange{}, errInvalid},
		{[]string{"bytes 0-9/"}, byteRange{}, errInvalid},
		{[]string{"bytes -9/*"}, byteRange{}, errInvalid},
		{[]string{"bytes 0-/*"}, byteRange{}, errInvalid},
		{[]string{"bytes */1000"}, byteRange{}, errInvalid},
		{[]string{"bytes 0-9/**"}, byteRange{}, errInvalid},
		{[]string{"bytes 0-9/-1"}, byteRange{}, errInvalid},
		{[]string{"bytes +0-9/*"}, byteRange{}, errInvalid},
		{[]string{"bytes 0x0-9/*"}, byteRange{}, errInvalid},
		{[]string{"bytes  0-9/*"}, byteRange{}, errInvalid},
		{[]string{"bytes 0-9/* "}, byteRange{}, errInvalid},
		{[]string{"bytes 0-4,5-9/*"}, byteRange{}, errInvalid},
		{[]string{"lines 0-9/*"}, byteRange{}, errInvalid},
		{[]string{"bytes 0-9/999"}, byteRange{}, errInvalid},
		{[]string{"bytes 0-9/1001"}, byteRange{}, errInvalid},
		{[]string{"bytes 0-9/99999999999999999999"}, byteRange{}, errInvalid},
		{[]string{"bytes 5-4/*"}, byteRange{}, errInvalid},
		{[]string{"bytes 999-0/*"}, byteRange{}, errInvalid},
		{[]string{"bytes 0-1000/*"}, byteRange{}, storage.ErrOutOfRange},
		{[]string{"bytes 1000-1000/*"}, byteRange{}, storage.ErrOutOfRange},
		{[]string{"bytes 0-9223372036854775807/*"}, byteRange{}, storage.ErrOutOfRange},
		{[]string{"bytes 9223372036854775807-9223372036854775807/*"}, byteRange{}, storage.ErrOutOfRange},
		{[]string{"bytes 0-99999999999999999999/*"}, byteRange{}, storage.ErrOutOfRange},
		{[]string{"bytes 99999999999999999999-0/*"}, byteRange{}, errInvalid},
	} {
		got, err := bodyRange(http.Header{"Content-Range": test.given}, size)
		if !errors.Is(err, test.err) || err == nil && got != test.want {
			t.Errorf("%q: %v, %v, want %v, %v", test.given, got, err, test.want, test.err)
		}
	}
	if got, err := bodyRange(nil, 0); err != nil || got != (byteRange{}) {
		t.Errorf("an empty image: %v, %v", got, err)
	}
	if _, err := bodyRange(http.Header{"Content-Range": {"bytes 0-0/*"}}, 0); !errors.Is(err, storage.ErrOutOfRange) {
		t.Errorf("an empty image: %v", err)
	}
}

// Whatever is accepted has the form that the contract says, and lies inside.
func FuzzContentRange(f *testing.F) {
	for _, header := range []string{"bytes 0-9/*", "bytes 0-0/1", "bytes 9223372036854775807-9223372036854775807/9223372036854775807", "bytes */5", "BYTES 1-0/*"} {
		f.Add(header, int64(10))
	}
	form := regexp.MustCompile(`^(?i:bytes) ([0-9]+)-([0-9]+)/([0-9]+|\*)$`)
	f.Fuzz(func(t *testing.T, header string, size int64) {
		size &= math.MaxInt64
		got, err := bodyRange(http.Header{"Content-Range": {header}}, size)
		if err != nil {
			return
		}
		if got.off < 0 || got.n <= 0 || got.off > size-got.n {
			t.Fatalf("%q: %v of %d", header, got, size)
		}
		found := form.FindStringSubmatch(header)
		if found == nil {
			t.Fatalf("%q is accepted", header)
		}
		var first, last, total int64
		_, err1 := fmt.Sscanf(found[1], "%d", &first)
		_, err2 := fmt.Sscanf(found[2], "%d", &last)
		if found[3] != "*" {
			if _, err := fmt.Sscanf(found[3], "%d", &total); err != nil || total != size {
				t.Fatalf("%q: the size is %d", header, size)
			}
		}
		if err1 != nil || err2 != nil || first != got.off || last != got.off+got.n-1 {
			t.Fatalf("%q: %v", header, got)
		}
	})
}
