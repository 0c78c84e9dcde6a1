package service_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/extentd/extentd/service"
)

func TestValidName(t *testing.T) {
	for name, want := range map[string]bool{
		"":                       false,
		"a":                      true,
		"0.qcow2":                true,
		"Disk_1-b.raw":           true,
		strings.Repeat("a", 255): true,
		strings.Repeat("a", 256): false,
		".hidden.raw":            false,
		"-f.raw":                 false,
		"_x":                     false,
		"a/b":                    false,
		"a\x00":                  false,
		"a b":                    false,
		"ä.raw":                  false,
		"..":                     false,
	} {
		if got := service.ValidName(name); got != want {
			t.Errorf("ValidName(%q) = %v", name, got)
		}
	}
}

func TestParseImageSpec(t *testing.T) {
	good := map[string]service.ImageSpec{
		"d=/x/y.raw":            {Name: "d", Path: "/x/y.raw"},
		"d=a=b.raw,format=raw":  {Name: "d", Path: "a=b.raw", Format: "raw"},
		"d=a,,b.raw,format=raw": {Name: "d", Path: "a,b.raw", Format: "raw"},
		"d=x,format=qcow2,data-file=/d,,1,backing=b.raw,readonly": {
			Name: "d", Path: "x", Format: "qcow2", DataFile: "/d,1", Backing: "b.raw", ReadOnly: true,
		},
	}
	for text, want := range good {
		got, err := service.ParseImageSpec(text)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%s: %v\n%s", text, err, diff)
		}
	}
	for _, text := range []string{
		"", "d", "d=", "=x", "../d=x", "d=x,", "d=x,frmat=raw", "d=x,format", "d=x,format=",
		"d=x,format=raw,format=raw", "d=x,readonly=1", "d=x,backing=a,backing=b",
	} {
		if got, err := service.ParseImageSpec(text); err == nil {
			t.Errorf("%q gives %+v", text, got)
		}
	}
}

func TestSpecsThatCannotBe(t *testing.T) {
	for what, specs := range map[string][]service.ImageSpec{
		"bad name":              {{Name: "a/b", Path: "x.raw"}},
		"no format":             {{Name: "a", Path: "x"}},
		"unknown format":        {{Name: "a", Path: "x", Format: "vmdk"}},
		"twice":                 {{Name: "a", Path: "x.raw"}, {Name: "a", Path: "y.raw"}},
		"raw with a backing":    {{Name: "a", Path: "x.raw", Backing: "b"}},
		"raw with a data file":  {{Name: "a", Path: "x.raw", DataFile: "b"}},
		"backing of bad format": {{Name: "a", Path: "x.qcow", Backing: "b"}},
	} {
		svc, err := service.New(service.Options{Images: specs, Formats: map[string]service.Driver{"raw": service.RawDriver()}})
		if err == nil {
			t.Errorf("%s: accepted", what)
			svc.Close()
		}
	}
}
