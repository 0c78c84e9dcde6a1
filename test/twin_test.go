package test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

// A twin is an image that QEMU changes, beside one that we change in the same
// way. Afterwards they are mapped in the same way, but for where things are.
type twin struct {
	*maker
	s            *server
	ours, theirs string
	commands     []string // qemu-io's, not yet run
}

// newTwin makes the two; create is called for each with the name's suffix.
func newTwin(t *testing.T, name string, create func(m *maker, suffix string) string) *twin {
	m := newMaker(t, t.TempDir(), name)
	w := &twin{maker: m, ours: create(m, "-ours"), theirs: create(m, "-theirs")}
	w.s = serve(t, m.dir)
	return w
}

func (w *twin) doWrite(off, length int64, pattern byte) {
	w.t.Helper()
	p := make([]byte, length)
	for i := range p {
		p[i] = pattern
	}
	must(w.t, w.s.put(w.ours, off, p, false))
	w.commands = append(w.commands, fmt.Sprintf("write -P %d %d %d", pattern, off, length))
}

// doZero zeros; anchored as `write -z` does, else as `write -z -u`.
func (w *twin) doZero(off, length int64, anchor bool) {
	w.t.Helper()
	must(w.t, w.s.zero(w.ours, off, length, anchor))
	flags := "-z -u"
	if anchor {
		flags = "-z"
	}
	w.commands = append(w.commands, fmt.Sprintf("write %s %d %d", flags, off, length))
}

func (w *twin) doTrim(off, length int64) {
	w.t.Helper()
	must(w.t, w.s.trim(w.ours, off, length))
	for length > 0 { // qemu-io does at most 2 GiB
		n := min(length, gib)
		w.commands = append(w.commands, fmt.Sprintf("discard %d %d", off, n))
		off, length = off+n, length-n
	}
}

// finish stops the server, lets QEMU do the same, and compares the bytes. How
// zeros are mapped may differ: what reads as zeros anyway QEMU marks as such,
// and we leave it alone. But we need no more clusters than QEMU, if frugal.
func (w *twin) finish(t *testing.T, frugal bool) {
	t.Helper()
	w.s.stop()
	w.io(w.theirs, w.commands...)
	w.checkClean(t, w.ours, w.theirs)
	w.run("qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", w.ours, w.theirs)
	if ours, theirs := w.clusters(w.ours), w.clusters(w.theirs); frugal && ours > theirs {
		t.Errorf("%d clusters are allocated, and by QEMU %d\n%s", ours, theirs, strings.Join(w.commands, "\n"))
	}
}

// clusters is how many clusters of an image have storage.
func (m *maker) clusters(file string) int64 {
	m.t.Helper()
	out, err := m.stdout("qemu-img", "check", "--output=json", "-f", "qcow2", file)
	var report struct {
		Allocated int64 `json:"allocated-clusters"`
	}
	if err := errors.Join(err, json.Unmarshal([]byte(out), &report)); err != nil {
		m.t.Fatal(err)
	}
	return report.Allocated
}

// twinKinds make images by the name of a sort.
func twinKinds() map[string]func(m *maker, suffix string) string {
	const size = 4 * mib
	own := func(options ...string) func(m *maker, suffix string) string {
		return func(m *maker, suffix string) string {
			options := slices.Clone(options)
			for i, o := range options {
				options[i] = strings.ReplaceAll(o, "NAME", m.file(suffix))
			}
			return m.create(suffix+".qcow2", size, options...)
		}
	}
	over := func(format string, below int64, options ...string) func(m *maker, suffix string) string {
		return func(m *maker, suffix string) string {
			base := m.file("-base." + format)
			if _, err := os.Stat(m.path(base)); err != nil {
				m.run("qemu-img", "create", "-q", "-f", format, base, fmt.Sprint(below))
				m.io(base, fmt.Sprintf("write -P 77 0 %d", below/2), fmt.Sprintf("write -P 78 %d %d", below*3/4, below/8))
			}
			return m.overlay(suffix+".qcow2", base, size, options...)
		}
	}
	return map[string]func(m *maker, suffix string) string{
		"v3":            own(),
		"v2":            own("compat=0.10"),
		"extended":      own("extended_l2=on"),
		"data file":     own("data_file=NAME-data.raw"),
		"raw data file": own("data_file=NAME-data.raw", "data_file_raw=on"),
		"over raw":      over("raw", size),
		"over qcow2":    over("qcow2", size),
		"over short":    over("qcow2", mib+512),
		"extended over": over("qcow2", size, "extended_l2=on"),
		"v2 over":       over("raw", size, "compat=0.10"),
	}
}

// TestTwins does the same at random to both.
func TestTwins(t *testing.T) {
	soak(t, func(t *testing.T, round int) {
		for name, create := range twinKinds() {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				twins(t, name, round, create)
			})
		}
	})
}

func twins(t *testing.T, name string, round int, create func(m *maker, suffix string) string) {
	w := newTwin(t, "twin", create)
	random := source(fmt.Sprintf("twins %s %d", name, round))
	unit := 64 * kib
	if strings.Contains(name, "extended") {
		unit = 2 * kib
	}
	for range 40 {
		off := random.Int64N(4*mib/unit) * unit
		length := min(unit*(1+random.Int64N(40)), 4*mib-off)
		switch random.IntN(5) {
		case 0, 1:
			w.doWrite(off+random.Int64N(unit), min(length, 4*mib-off-unit)+1, byte(1+random.IntN(250)))
		case 2:
			w.doZero(off, length, true)
		case 3:
			w.doZero(off, length, false)
		case 4:
			if name == "v2 over" {
				continue // is refused
			}
			off -= off % (64 * kib) // whole clusters
			w.doTrim(off, min(64*kib*(1+random.Int64N(5)), 4*mib-off))
		}
	}
	w.finish(t, false)
}
