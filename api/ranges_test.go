package api

import (
	"fmt"
	"math"
	"math/big"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func TestParseRanges(t *testing.T) {
	many := strings.TrimSuffix(strings.Repeat("0-0,", maxRanges+1), ",")
	for _, test := range []struct {
		header  string
		size    int64
		want    []byteRange
		verdict rangeVerdict
	}{
		{"bytes=0-0", 100, []byteRange{{0, 1}}, rangePartial},
		{"bytes=0-99", 100, []byteRange{{0, 100}}, rangePartial},
		{"bytes=0-100", 100, []byteRange{{0, 100}}, rangePartial},
		{"bytes=99-", 100, []byteRange{{99, 1}}, rangePartial},
		{"bytes=100-", 100, nil, rangeOutside},
		{"bytes=-1", 100, []byteRange{{99, 1}}, rangePartial},
		{"bytes=-100", 100, []byteRange{{0, 100}}, rangePartial},
		{"bytes=-101", 100, []byteRange{{0, 100}}, rangePartial},
		{"bytes=-0", 100, nil, rangeOutside},
		{"bytes=-00", 100, nil, rangeOutside},
		{"bytes=007-008", 100, []byteRange{{7, 2}}, rangePartial},
		{"Bytes=1-2", 100, []byteRange{{1, 2}}, rangePartial},
		{"bytes=5-9223372036854775807", 100, []byteRange{{5, 95}}, rangePartial},
		{"bytes=5-99999999999999999999", 100, []byteRange{{5, 95}}, rangePartial},
		{"bytes=99999999999999999999-", 100, nil, rangeOutside},
		{"bytes=18446744073709551616-18446744073709551617", 100, nil, rangeOutside},
		{"bytes=-99999999999999999999", 100, []byteRange{{0, 100}}, rangePartial},
		{"bytes=0-", 1 << 61, []byteRange{{0, 1 << 61}}, rangePartial},

		{"bytes=0-1,4-5", 100, []byteRange{{0, 2}, {4, 2}}, rangePartial},
		{"bytes=4-5,0-1", 100, []byteRange{{4, 2}, {0, 2}}, rangePartial},
		{"bytes= 0-1 ,\t4-5 ", 100, []byteRange{{0, 2}, {4, 2}}, rangePartial},
		{"bytes=,,0-1,,", 100, []byteRange{{0, 2}}, rangePartial},
		{"bytes=0-1,200-300,-1", 100, []byteRange{{0, 2}, {99, 1}}, rangePartial},
		{"bytes=200-300,400-", 100, nil, rangeOutside},
		{"bytes=0-,-100", 100, []byteRange{{0, 100}, {0, 100}}, rangePartial},
		{"bytes=0-,-100,0-0", 100, nil, rangeTooMany},
		{"bytes=" + many, 1 << 20, nil, rangeTooMany},
		{"bytes=" + many + ",x", 1 << 20, nil, rangeNone},
		{"bytes=" + strings.ReplaceAll(many, "0-0", "9-"), 1, nil, rangeTooMany},

		{"", 100, nil, rangeNone},
		{"bytes", 100, nil, rangeNone},
		{"bytes=", 100, nil, rangeNone},
		{"bytes=,", 100, nil, rangeNone},
		{"bytes=-", 100, nil, rangeNone},
		{"bytes=--1", 100, nil, rangeNone},
		{"bytes=1", 100, nil, rangeNone},
		{"bytes=2-1", 100, nil, rangeNone},
		{"bytes=0-1,2-1", 100, nil, rangeNone},
		{"bytes=a-b", 100, nil, rangeNone},
		{"bytes=1-2-3", 100, nil, rangeNone},
		{"bytes=+1-2", 100, nil, rangeNone},
		{"bytes=1 -2", 100, nil, rangeNone},
		{"bytes=0x1-2", 100, nil, rangeNone},
		{"bytes =1-2", 100, nil, rangeNone},
		{"lines=1-2", 100, nil, rangeNone},
		{"bytes=1-2;3-4", 100, nil, rangeNone},

		{"bytes=0-", 0, nil, rangeOutside},
		{"bytes=0-0", 0, nil, rangeOutside},
		{"bytes=-1", 0, nil, rangeNone},
		{"bytes=-0", 0, nil, rangeOutside},
		{"bytes=0-,-5", 0, nil, rangeNone},
	} {
		t.Run(test.header[:min(len(test.header), 60)], func(t *testing.T) {
			got, verdict := parseRanges(test.header, test.size, nil)
			if verdict != test.verdict || verdict == rangePartial && !slices.Equal(got, test.want) {
				t.Errorf("parseRanges(%q, %d) = %v, %v; want %v, %v", test.header, test.size, got, verdict, test.want, test.verdict)
			}
		})
	}
}

func TestParseOneRangeDoesNotAllocate(t *testing.T) {
	var few [4]byteRange
	n := testing.AllocsPerRun(100, func() {
		if _, verdict := parseRanges("bytes=1048576-1052671", 1<<30, few[:0]); verdict != rangePartial {
			t.Fatal(verdict)
		}
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzParseRanges compares with a parser that is slow and plain.
func FuzzParseRanges(f *testing.F) {
	for _, header := range []string{
		"bytes=0-0", "bytes=0-", "bytes=-5", "bytes=-0", "bytes=5-2", "bytes=0-1,2-3", "bytes= 1-2 , -7,,", "lines=0-1",
		"bytes=99999999999999999999-", "bytes=1-99999999999999999999", "bytes=-9223372036854775808", "bytes=0-,0-,0-", "bytes=",
		"BYTES=3-4", "bytes=1-2\t", "bytes=\x00-1",
	} {
		for _, size := range []int64{0, 1, 4096, 1 << 61} {
			f.Add(header, size)
		}
	}
	f.Fuzz(func(t *testing.T, header string, size int64) {
		size &= 1<<61 - 1
		got, verdict := parseRanges(header, size, nil)
		want, wantVerdict := plainRanges(header, size)
		if verdict != wantVerdict || verdict == rangePartial && !slices.Equal(got, want) {
			t.Fatalf("parseRanges(%q, %d) = %v, %v; want %v, %v", header, size, got, verdict, want, wantVerdict)
		}
		for _, r := range got {
			if r.off < 0 || r.n < 1 || r.off > size-r.n {
				t.Fatalf("range %v of %d bytes", r, size)
			}
		}
	})
}

var rangeForm = regexp.MustCompile(`^([0-9]*)-([0-9]*)$`)

// plainRanges follows RFC 9110 to the letter, with numbers of any size.
func plainRanges(header string, size int64) ([]byteRange, rangeVerdict) {
	unit, set, ok := strings.Cut(header, "=")
	if !ok || !strings.EqualFold(unit, "bytes") {
		return nil, rangeNone
	}
	number := func(s string) *big.Int {
		n, _ := new(big.Int).SetString(s, 10)
		if n.Cmp(big.NewInt(math.MaxInt64)) > 0 {
			return big.NewInt(math.MaxInt64) // past every end, and all of these alike
		}
		return n
	}
	end := big.NewInt(size)

	var ranges []byteRange
	specs, empty := 0, false
	total := new(big.Int)
	for _, spec := range strings.Split(set, ",") {
		if spec = strings.Trim(spec, " \t"); spec == "" {
			continue
		}
		specs++
		m := rangeForm.FindStringSubmatch(spec)
		if m == nil || m[1] == "" && m[2] == "" {
			return nil, rangeNone
		}
		first, last := new(big.Int), new(big.Int).Sub(end, big.NewInt(1))
		switch {
		case m[1] == "":
			n := number(m[2])
			if n.Sign() == 0 {
				continue
			}
			if size == 0 {
				empty = true
				continue
			}
			if first.Sub(end, n).Sign() < 0 {
				first.SetInt64(0)
			}
		case m[2] == "":
			first = number(m[1])
		default:
			first = number(m[1])
			given := number(m[2])
			if given.Cmp(first) < 0 {
				return nil, rangeNone
			}
			if given.Cmp(last) < 0 {
				last = given
			}
		}
		if first.Cmp(end) >= 0 {
			continue
		}
		n := new(big.Int).Add(new(big.Int).Sub(last, first), big.NewInt(1))
		total.Add(total, n)
		ranges = append(ranges, byteRange{first.Int64(), n.Int64()})
	}
	twice := new(big.Int).Mul(end, big.NewInt(2))
	switch {
	case specs == 0 || empty:
		return nil, rangeNone
	case specs > maxRanges || total.Cmp(twice) > 0:
		return nil, rangeTooMany
	case len(ranges) == 0:
		return nil, rangeOutside
	}
	return ranges, rangePartial
}

func TestContentRange(t *testing.T) {
	const huge = int64(1) << 61
	if got, want := contentRange(byteRange{huge - 10, 10}, huge), fmt.Sprintf("bytes %d-%d/%d", huge-10, huge-1, huge); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
