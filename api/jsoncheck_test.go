package api

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestCheckJSON(t *testing.T) {
	mappings := bodyOf[MappingUpdates](maxBatch, mediaJSON).shape
	creation := bodyOf[ImageCreation](maxBody, mediaJSON).shape
	empty := bodyOf[FlushRequest](maxBody, mediaJSON).shape
	const target = `"target":{"kind":"zero"}`
	for _, test := range []struct {
		shape *shape
		text  string
		want  []string // field and rule in turn
	}{
		{mappings, `{"updates":[{"offset":0,"length":1,"target":{"kind":"data","allocation":"a","allocation_offset":0}}]}`, nil},
		{mappings, ` { "updates" : [ ] } ` + "\n", nil},
		{empty, `{}`, nil},
		{mappings, ``, []string{"body", "syntax"}},
		{mappings, ` `, []string{"body", "syntax"}},
		{mappings, `{`, []string{"body", "syntax"}},
		{mappings, `{"updates":`, []string{"body", "syntax"}},
		{mappings, `{"updates":[`, []string{"body", "syntax"}},
		{mappings, `{"updates":[]`, []string{"body", "syntax"}},
		{mappings, `{"updates":[]}}`, []string{"body", "syntax"}},
		{mappings, `{"updates":[]} {}`, []string{"body", "syntax"}},
		{mappings, `{"updates":[],}`, []string{"body", "syntax"}},
		{mappings, `{"updates":[{} {}]}`, []string{"body", "syntax"}},
		{mappings, `{updates:[]}`, []string{"body", "syntax"}},
		{mappings, `{"x":{]}`, []string{"body", "syntax"}},
		{mappings, `not json`, []string{"body", "syntax"}},
		{mappings, "\xff", []string{"body", "syntax"}},
		{mappings, `[]`, []string{"body", "type"}},
		{mappings, `null`, []string{"body", "type"}},
		{mappings, `7`, []string{"body", "type"}},
		{mappings, `{}`, []string{"updates", "required"}},
		{mappings, `{"Updates":[]}`, []string{"Updates", "unknown", "updates", "required"}},
		{mappings, `{"updates":{}}`, []string{"updates", "type"}},
		{mappings, `{"updates":null}`, []string{"updates", "type"}},
		{mappings, `{"updates":[],"updates":[]}`, []string{"updates", "repeated"}},
		{mappings, `{"updates":[7,[{"offset":0}]]}`, []string{"updates[0]", "type", "updates[1]", "type"}},
		{mappings, `{"updates":[{"offset":0,"length":1,` + target + `,"lengths":{"a":[1,2]}}]}`, []string{"updates[0].lengths", "unknown"}},
		{mappings, `{"updates":[{"offset":0,"length":1,` + target + `},{"offset":"0","length":1.0,"target":{"kind":1,"kinds":2}}]}`, []string{
			"updates[1].offset", "type", "updates[1].length", "type", "updates[1].target.kind", "type", "updates[1].target.kinds", "unknown",
		}},
		{mappings, `{"updates":[{"offset":9223372036854775808,"length":-9223372036854775809,` + target + `}]}`, []string{"updates[0].offset", "max", "updates[0].length", "max"}},
		{mappings, `{"updates":[{"offset":1e3,"length":9223372036854775807,` + target + `}]}`, []string{"updates[0].offset", "type"}},
		{mappings, `{"updates":[{"offset":0,"offset":1,"length":1,` + target + `}]}`, []string{"updates[0].offset", "repeated"}},
		{creation, `{"name":"a.raw","format":"raw","size":null}`, []string{"size", "type"}},
		{creation, `{"name":"a.raw","format":"raw","extended_l2":"true"}`, []string{"extended_l2", "type"}},
		{creation, `{"name":"a.raw","format":"raw","extended_l2":1}`, []string{"extended_l2", "type"}},
		{creation, `{}`, []string{"format", "required", "name", "required"}},
		{empty, `{"a":1}`, []string{"a", "unknown"}},
		{empty, `{"":1}`, []string{"body", "unknown"}},
	} {
		err := checkJSON([]byte(test.text), test.shape)
		var got []string
		var request *requestError
		if errors.As(err, &request) {
			for _, f := range request.fields {
				got = append(got, f.Field, f.Rule)
			}
		}
		if (err == nil) != (test.want == nil) || !cmp.Equal(got, test.want) {
			t.Errorf("%s: %q, want %q (%v)", test.text, got, test.want, err)
		}
	}
}

// Of many faults, and of long names, only so much is told.
func TestCheckJSONIsBrief(t *testing.T) {
	shape := bodyOf[FlushRequest](maxBody, mediaJSON).shape
	long := strings.Repeat("x", 1000)
	text := `{"` + long + `0":0`
	for range 999 {
		text += `,"` + long + `":{"a":[[]]}`
	}
	var request *requestError
	if err := checkJSON([]byte(text+"}"), shape); !errors.As(err, &request) || len(request.fields) != maxFields || len(err.Error()) > 3000 {
		t.Errorf("%v", err)
	}
	deep := strings.Repeat("[", 100_000)
	if err := checkJSON([]byte(`{"a":`+deep), shape); !errors.Is(err, errInvalid) {
		t.Errorf("%v", err)
	}
}

// What passes is what the standard library decodes without a fault, and with
// nothing left over.
func FuzzCheckJSON(f *testing.F) {
	for _, text := range []string{`{"offset":1,"length":2,"anchor":true}`, `{"offset":1,"length":2}x`, `{"offset":[{"a":null}]}`, `{"offset":0,"offset":0,"length":1}`, `{"offset":-0,"length":01}`} {
		f.Add([]byte(text))
	}
	s := bodyOf[ZeroRange](maxBody, mediaJSON).shape
	f.Fuzz(func(t *testing.T, text []byte) {
		if checkJSON(text, s) != nil {
			return
		}
		var v ZeroRange
		d := json.NewDecoder(strings.NewReader(string(text)))
		d.DisallowUnknownFields()
		if err := d.Decode(&v); err != nil || !json.Valid(text) {
			t.Errorf("%q passes, but: %v", text, err)
		}
	})
}
