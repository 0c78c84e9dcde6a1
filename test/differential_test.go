package test

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"
)

// soak runs a test once, as round 0, and again with rising numbers for a fifth
// of the time that the variable SOAK says: five tests share it. Each round waits
// for its parallel subtests.
func soak(t *testing.T, do func(t *testing.T, round int)) {
	t.Helper()
	var d time.Duration
	if text := os.Getenv("SOAK"); text != "" {
		var err error
		if d, err = time.ParseDuration(text); err != nil {
			t.Fatalf("SOAK: %v", err)
		}
	}
	deadline := time.Now().Add(d / 5)
	for round := 0; round == 0 || time.Now().Before(deadline) && !t.Failed(); round++ {
		t.Run(fmt.Sprint(round), func(t *testing.T) { do(t, round) })
	}
}

// TestDifferential writes to every kind of image by HTTP, in turn with QEMU,
// and compares with a model of the bytes and with what QEMU says of the image.
func TestDifferential(t *testing.T) {
	soak(t, func(t *testing.T, round int) {
		for _, k := range subjects() {
			t.Run(k.name, func(t *testing.T) {
				t.Parallel()
				differ(t, k, fmt.Sprintf("%s-%d", k.name, round))
			})
		}
	})
}

func differ(t *testing.T, k *subject, name string) {
	d := newDisk(t, k, name)
	for session := range 3 {
		d.s = serve(t, d.dir)
		for range 35 {
			d.step(t)
		}
		must(t, d.verify(0, d.size()))
		mapped := d.s.stream(t, d.file)
		checkZeros(t, mapped, d.model)
		d.s.stop()
		d.note("stop")
		d.judge(t, spansOfExtents(mapped))
		if session < 2 {
			d.qemuSession(t, fmt.Sprint("s", session))
		}
	}
}

// qemuSession is what QEMU does to the image between two of ours.
func (d *disk) qemuSession(t *testing.T, snapshot string) {
	if !d.subject.single && len(d.before) < 2 {
		d.run("qemu-img", "snapshot", "-c", snapshot, d.file)
		d.before[snapshot] = d.model
	}
	if d.subject.format() == "raw" {
		// QEMU rounds the size of the file up when it writes past the end.
		d.scatter(d.file, d.size()&^511, d.subject.cluster, 4)
	} else {
		d.scatter(d.file, d.size(), d.subject.cluster, 4)
	}
	d.adopt(t)
}

// checkZeros: what the map says is zero is.
func checkZeros(t *testing.T, extents []extent, model []byte) {
	t.Helper()
	for _, e := range extents {
		if !*e.Zero {
			continue
		}
		for i, b := range model[*e.Offset:e.end()] {
			if b != 0 {
				t.Fatalf("byte %d is not zero, but the map says %v", *e.Offset+int64(i), e)
			}
		}
	}
}

// judge has QEMU look at the image after a clean stop: there are neither errors
// nor leaks, its bytes are the model's, and it is mapped as we said.
func (d *disk) judge(t *testing.T, mapped []span) {
	t.Helper()
	path := d.path("model")
	if err := os.WriteFile(path, d.model, 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := d.try("qemu-img", "compare", "-f", d.subject.format(), "-F", "raw", d.file, "model")
	if err != nil {
		t.Fatalf("qemu-img compare: %v\n%s", err, out)
	}
	if info, err := os.Stat(d.path(d.file)); err != nil || d.subject.format() == "raw" && info.Size() != d.size() {
		t.Fatalf("the file has %d bytes, want %d (%v)", info.Size(), d.size(), err)
	}
	d.judgeVerbs(t)
	if d.subject.format() != "qcow2" {
		return
	}
	d.checkClean(t, d.file)
	sameMap(t, "the map before the stop", settled(mapped), settled(spansOf(qemuMap(t, d.dir, d.file))))
	for name, want := range d.before {
		d.run("qemu-img", "convert", "-t", "unsafe", "-f", "qcow2", "-O", "raw", "-l", "snapshot.name="+name, d.file, "snapshot.raw")
		got, err := os.ReadFile(d.path("snapshot.raw"))
		if err != nil {
			t.Fatal(err)
		}
		if i := firstDifference(got[:min(len(got), len(want))], want[:min(len(got), len(want))]); i >= 0 {
			t.Fatalf("byte %d of snapshot %s has changed", i, name)
		}
	}
}

// settled is a map without what a file says of its holes, which depends on when
// it is asked: zeros that lie at an offset are data here.
func settled(spans []span) []span {
	spans = slices.Clone(spans)
	for i := range spans {
		spans[i].Zero = spans[i].Zero && spans[i].Offset < 0
	}
	return merge(spans)
}

// judgeVerbs compares our local verbs with qemu-img's.
func (d *disk) judgeVerbs(t *testing.T) {
	t.Helper()
	out, errs, code := verb(t, d.dir, "map", "--output", "json", d.file)
	var got []mapLine
	if err := json.Unmarshal([]byte(out), &got); code != 0 || err != nil {
		t.Fatalf("map: exit code %d, %v\n%s", code, err, errs)
	}
	if d.subject.name == "raw-odd" { // QEMU counts in sectors
		return
	}
	if diff := difference(normal(got), normal(qemuMap(t, d.dir, d.file))); diff != "" {
		t.Fatalf("extentd map differs from qemu-img map: %s", diff)
	}
	if d.subject.format() != "qcow2" {
		return
	}
	sameCheck(t, d.maker, d.file)
}

// checkClean wants no errors and no leaks.
func (m *maker) checkClean(t *testing.T, files ...string) {
	t.Helper()
	for _, file := range files {
		if out, err := m.try("qemu-img", "check", "-f", "qcow2", file); err != nil {
			t.Fatalf("qemu-img check %s: %v\n%.2000s", file, err, out)
		}
	}
}

// checkSound wants no errors; leaks may be.
func (m *maker) checkSound(t *testing.T, file string) {
	t.Helper()
	out, err := m.try("qemu-img", "check", "-f", "qcow2", file)
	if code := exitCode(err); code != 0 && code != 3 {
		t.Fatalf("qemu-img check %s: %v\n%.2000s", file, err, out)
	}
}

// sameCheck compares our verb check with qemu-img's: exit code and numbers.
func sameCheck(t *testing.T, m *maker, file string) {
	t.Helper()
	want, err := m.stdout("qemu-img", "check", "--output=json", "-f", "qcow2", file)
	out, errs, code := verb(t, m.dir, "check", "--output", "json", file)
	if code != exitCode(err) {
		t.Fatalf("extentd check: exit code %d, and of qemu-img %d\n%s%s\n%s", code, exitCode(err), out, errs, want)
	}
	var ours, theirs map[string]any
	if err := json.Unmarshal([]byte(out), &ours); err != nil {
		t.Fatalf("extentd check: %v\n%s", err, out)
	}
	if err := json.Unmarshal([]byte(want), &theirs); err != nil {
		t.Fatalf("qemu-img check: %v\n%s", err, want)
	}
	for name, value := range theirs {
		if ours[name] != value {
			t.Fatalf("extentd check says %s: %v, and qemu-img %v\n%s\n%s", name, ours[name], value, out, want)
		}
	}
}
