package main

import (
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
)

// loadOf is the part of a configuration that flags make.
func loadOf(t *testing.T, flags ...string) (LoadConfig, error) {
	t.Helper()
	f := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	configFlags(f)
	if err := f.Parse(flags); err != nil {
		t.Fatal(err)
	}
	c, err := loadConfig(f, []string{t.TempDir()})
	return c.Load, err
}

func TestLoadConfig(t *testing.T) {
	c, err := loadOf(t)
	if err != nil || c.MaxConnections != 4096 || c.memory != 512<<20 || c.Stall != time.Minute || c.Rate != 0 {
		t.Errorf("the default is %+v, %v", c, err)
	}
	if l := c.limits(false); l.Memory().Total() != 256<<20 || l.Rates() != nil || l.Stall() != time.Minute || l.Connections() == nil {
		t.Errorf("its limits: %d bytes", l.Memory().Total())
	}
	if l := c.limits(true); l.Memory().Total() != 128<<20 {
		t.Errorf("beside NBD: %d bytes", l.Memory().Total())
	}
	c, err = loadOf(t, "--max-memory", "1GiB", "--rate", "0.5", "--burst", "7", "--stall", "5s", "--max-connections", "10")
	if err != nil || c.memory != 1<<30 || c.Rate != 0.5 || c.Burst != 7 || c.limits(true).Rates() == nil {
		t.Errorf("%+v, %v", c, err)
	}
	for flag, want := range map[string]string{
		"--max-memory=100MiB":    "must be at least 128MiB",
		"--max-memory=1GB":       "is no size",
		"--max-memory=":          "is no size",
		"--max-connections=0":    "must be at least 1",
		"--rate=-1":              "must be from 0",
		"--rate=NaN":             "must be from 0",
		"--burst=-1":             "must not be negative",
		"--burst=5":              "there is no rate",
		"--stall=999ms":          "must be at least 1s",
		"--max-connections=-200": "must be at least 1",
	} {
		if _, err := loadOf(t, flag); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", flag, err, want)
		}
	}
}
