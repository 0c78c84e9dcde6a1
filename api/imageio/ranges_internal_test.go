package imageio

import (
	"math/big"
	"regexp"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// What the peer takes for a header, by its documents and its source.
var (
	theirRange        = regexp.MustCompile(`^bytes=([0-9]*)-([0-9]*)$`)
	theirContentRange = regexp.MustCompile(`^bytes ([0-9]+)-([0-9]+|\*)/([0-9]+|\*)$`)
)

func decimal(text string) *big.Int {
	n, _ := new(big.Int).SetString(text, 10)
	return n
}

// anyHeader is one that is nearly right.
func anyHeader(t *rapid.T, unit string) string {
	part := rapid.SampledFrom([]string{"", "*", "0", "1", "7", "99", "100", "101", "9223372036854775807", "9223372036854775808", "99999999999999999999999", "-1", "+1", "0x5", "1 ", "٣"})
	between := rapid.SampledFrom([]string{"-", "-", "-", "-", "", "--", "/", ","})
	header := rapid.SampledFrom([]string{unit, unit, unit, unit, "", "Bytes=", "lines="}).Draw(t, "unit") + part.Draw(t, "first") + between.Draw(t, "dash") + part.Draw(t, "last")
	if unit == "bytes " {
		header += rapid.SampledFrom([]string{"/", "/", "/", "/", "", "//"}).Draw(t, "slash") + part.Draw(t, "size")
	}
	return header
}

// A range is taken if the peer takes it and it lies in the image, and is that range;
// or if it is for the last bytes.
func TestReadRange(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.SampledFrom([]int64{0, 1, 100, 1 << 40}).Draw(t, "size")
		header := anyHeader(t, "bytes=")
		win, err := readRange(header, size)
		m := theirRange.FindStringSubmatch(header)
		if m == nil || m[1] == "" && m[2] == "" {
			if err == nil {
				t.Fatalf("%q is taken for %+v", header, win)
			}
			return
		}
		end, first, last := big.NewInt(size), new(big.Int), new(big.Int)
		switch {
		case m[1] == "":
			first.Sub(end, decimal(m[2]))
			last.Sub(end, big.NewInt(1))
		case m[2] == "":
			first = decimal(m[1])
			last.Sub(end, big.NewInt(1))
		default:
			first, last = decimal(m[1]), decimal(m[2])
		}
		inside := first.Sign() >= 0 && first.Cmp(last) <= 0 && last.Cmp(end) < 0
		if inside != (err == nil) {
			t.Fatalf("%q of %d: %+v, %v", header, size, win, err)
		}
		if inside && (win.Offset != first.Int64() || win.Offset+win.Length-1 != last.Int64()) {
			t.Fatalf("%q of %d: %+v", header, size, win)
		}
	})
}

// Where a body begins is what the peer takes it for.
func TestWriteOffset(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		header := anyHeader(t, "bytes ")
		off, err := writeOffset(header)
		m := theirContentRange.FindStringSubmatch(header)
		good := m != nil
		if good && m[2] != "*" {
			good = decimal(m[1]).Cmp(decimal(m[2])) <= 0 && (m[3] == "*" || decimal(m[2]).Cmp(decimal(m[3])) < 0)
		}
		// What does not fit in 63 bits is beyond any end, and all such numbers are one.
		huge := m != nil && slices.ContainsFunc(m[1:], func(part string) bool { return part != "*" && decimal(part).BitLen() > 62 })
		if good != (err == nil) && !huge {
			t.Fatalf("%q: %d, %v", header, off, err)
		}
		if good && !huge && off != decimal(m[1]).Int64() {
			t.Fatalf("%q: %d", header, off)
		}
	})
}
