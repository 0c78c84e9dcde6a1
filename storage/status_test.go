package storage_test

import (
	"strings"
	"testing"

	"github.com/extentd/extentd/storage"
)

// What each of the 16 statuses means, from the design's two tables: "" for a
// bug.
var (
	formatMeanings = map[string]string{
		"L Z A O": "zeros, and the child is zero at offset",
		"L - A O": "data at offset",
		"L Z - O": "zeros, the child has a hole at offset",
		"L - - O": "",
		"L Z A -": "zeros, storage at an unknown offset",
		"L - A -": "data at an unknown offset",
		"L Z - -": "zeros, no storage",
		"L - - -": "",
		"- Z A O": "defers to backing; allocated zeros at offset",
		"- - A O": "defers to backing; preallocated at offset",
		"- Z - O": "",
		"- - - O": "",
		"- Z A -": "",
		"- - A -": "",
		"- Z - -": "",
		"- - - -": "defers to backing",
	}
	protocolMeanings = map[string]string{
		"- Z A O": "zeros, offset allocated",
		"- - A O": "data, offset allocated",
		"- Z - O": "zeros, offset is a hole",
		"- - - O": "",
		"- Z A -": "zeros, storage at an unknown offset",
		"- - A -": "data at an unknown offset",
		"- Z - -": "zeros, a hole",
		"- - - -": "this part cannot be accessed",
		"L Z A O": "", "L - A O": "", "L Z - O": "", "L - - O": "",
		"L Z A -": "", "L - A -": "", "L Z - -": "", "L - - -": "",
	}
)

func TestTruthTables(t *testing.T) {
	for _, c := range []struct {
		name  string
		table [16]storage.StatusRule
		want  map[string]string
	}{
		{"format", storage.FormatStatuses(), formatMeanings},
		{"protocol", storage.ProtocolStatuses(), protocolMeanings},
	} {
		t.Run(c.name, func(t *testing.T) {
			if len(c.want) != 16 {
				t.Fatalf("the test knows %d statuses", len(c.want))
			}
			for i, rule := range c.table {
				if rule.Status != storage.Status(i) {
					t.Errorf("rule %d is of status %v", i, rule.Status)
				}
				want, known := c.want[rule.Status.String()]
				if !known {
					t.Errorf("%v is not in the design", rule.Status)
				}
				if rule.Valid != (want != "") || rule.Valid && rule.Meaning != want || rule.Meaning == "" {
					t.Errorf("%v: valid %v, %q, want %q", rule.Status, rule.Valid, rule.Meaning, want)
				}
			}
		})
	}
}

func TestStatusBits(t *testing.T) {
	for s := range storage.Status(16) {
		letters := strings.ReplaceAll(s.String(), " ", "")
		for i, bit := range []storage.Status{storage.Local, storage.Zero, storage.Alloc, storage.OffsetValid} {
			if s.Has(bit) != (letters[i] == "LZAO"[i]) || !s.Has(bit) && letters[i] != '-' {
				t.Errorf("%q: bit %d", s, i)
			}
		}
		if !s.Has(0) || !s.Has(s) || s.Has(16) {
			t.Errorf("%q.Has", s)
		}
	}
	if got := storage.Status(16).String(); got != "Status(16)" {
		t.Errorf("an unknown bit is %q", got)
	}
}
