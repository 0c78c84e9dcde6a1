package audit_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/extentd/extentd/audit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t *testing.T, opt audit.Options) *audit.Log {
	t.Helper()
	l, err := audit.New(opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// lines are the records of a file.
func lines(t *testing.T, path string) []audit.Record {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var out []audit.Record
	for _, line := range bytes.SplitAfter(text, []byte("\n")) {
		if len(line) == 0 {
			continue
		}
		var r audit.Record
		if err := json.Unmarshal(line, &r); err != nil || line[len(line)-1] != '\n' {
			t.Fatalf("%v: %q", err, line)
		}
		out = append(out, r)
	}
	return out
}

func requests(all []audit.Record) []string {
	var ids []string
	for _, r := range all {
		ids = append(ids, r.Request)
	}
	return ids
}

// A record is a line, appended to what is there, for its owner alone.
func TestRecord(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	off, n := int64(4096), int64(0)
	want := audit.Record{
		Time: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC), Protocol: "http", Request: "r-1", Trace: "0af7651916cd43dd8448eb211c80319c",
		Caller: audit.Caller{Kind: "token", Name: "backup"}, Remote: "192.0.2.1:5", Method: "PUT", Route: "/v1/images/{image}/data",
		Image: "disk.raw", Change: &audit.Change{Offset: &off, Length: &n}, Status: 204, Result: audit.OK, Received: 7, Seconds: .25,
	}
	for range 2 {
		l, err := audit.New(audit.Options{File: path})
		if err != nil {
			t.Fatal(err)
		}
		r := want
		l.Write(&r)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	want.Audit, want.Level, want.Message = true, "INFO", "audit"
	if diff := cmp.Diff([]audit.Record{want, want}, lines(t, path)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	var least bytes.Buffer
	open(t, audit.Options{Writer: &least}).Write(&audit.Record{Protocol: "nbd", Result: audit.OK})
	if got, want := least.String(), `{"time":"0001-01-01T00:00:00Z","level":"INFO","msg":"audit","audit":true,"protocol":"nbd","caller":{"kind":""},"remote":"","result":"ok","seconds":0}`+"\n"; got != want {
		t.Errorf("what is empty is not left out: %s", got)
	}
}

// Where the file is renamed, removed, or on Reopen, it is made anew, and no
// record is lost or torn.
func TestRotation(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "audit.log")
	l := open(t, audit.Options{File: path})
	stop := make(chan struct{})
	var writers sync.WaitGroup
	var written [4]int
	for w := range written {
		writers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					l.Write(&audit.Record{Request: fmt.Sprintf("%d-%d", w, written[w])})
					written[w]++
				}
			}
		})
	}
	var files []string
	for i := range 20 {
		old := fmt.Sprintf("%s.%d", path, i)
		if err := os.Rename(path, old); err != nil {
			t.Fatal(err)
		}
		files = append(files, old)
		if err := l.Reopen(); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	writers.Wait()
	got := 0
	for _, f := range append(files, path) {
		got += len(lines(t, f))
	}
	want := 0
	for _, n := range written {
		want += n
	}
	if records, failures := l.Stats(); got != want || records != uint64(want) || failures != 0 {
		t.Errorf("%d records in files, %d counted, %d failed; want %d", got, records, failures, want)
	}
}

// Nobody need say that the file was renamed or removed.
func TestKeep(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	l := open(t, audit.Options{File: path})
	for n, away := range []func() error{
		func() error { return os.Rename(path, path+".1") },
		func() error { return os.Remove(path) },
		func() error { return errors.Join(os.Rename(path, path+".2"), os.WriteFile(path, nil, 0o600)) }, // as logrotate's create does
	} {
		before, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := away(); err != nil {
			t.Fatal(err)
		}
		id := fmt.Sprint("after ", n)
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
			l.Write(&audit.Record{Request: id})
			now, err := os.Stat(path)
			if err == nil && !os.SameFile(before, now) && now.Size() > 0 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%d: the file is not made anew: %v", n, err)
			}
		}
		if got := requests(lines(t, path)); got[len(got)-1] != id {
			t.Errorf("%d: got %q", n, got)
		}
	}
}

// brokenWriter fails.
type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, errors.New("the disk is full") }

// What cannot be written is counted, and told of once.
func TestFailure(t *testing.T) {
	var told bytes.Buffer
	l := open(t, audit.Options{Writer: brokenWriter{}, Logger: slog.New(slog.NewTextHandler(&told, nil))})
	for range 100 {
		l.Write(&audit.Record{Request: "r"})
	}
	if records, failures := l.Stats(); records != 0 || failures != 100 {
		t.Errorf("%d records, %d failures", records, failures)
	}
	if n := strings.Count(told.String(), "the disk is full"); n != 1 {
		t.Errorf("told %d times: %s", n, &told)
	}
	closed, err := audit.New(audit.Options{File: filepath.Join(t.TempDir(), "x")})
	if err == nil {
		err = closed.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	closed.Write(&audit.Record{})
	if _, failures := closed.Stats(); failures != 1 {
		t.Error("a record after Close is no failure")
	}
	if _, err := audit.New(audit.Options{File: t.TempDir()}); err == nil {
		t.Error("a directory is taken for a file")
	}
}

// A nil log takes everything and keeps nothing.
func TestNil(t *testing.T) {
	var l *audit.Log
	l.Write(&audit.Record{})
	if records, failures := l.Stats(); records+failures != 0 {
		t.Error("it counts")
	}
	if err := errors.Join(l.Reopen(), l.Close()); err != nil {
		t.Error(err)
	}
}

func BenchmarkWrite(b *testing.B) {
	l, err := audit.New(audit.Options{File: filepath.Join(b.TempDir(), "audit.log")})
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	off, n := int64(4096), int64(4096)
	b.ReportAllocs()
	for b.Loop() {
		l.Write(&audit.Record{
			Time: time.Now(), Protocol: "http", Request: "0011aabb-42", Caller: audit.Caller{Kind: "token", Name: "backup"}, Remote: "192.0.2.1:50000",
			Method: "PUT", Route: "/v1/images/{image}/data", Image: "disk.raw", Change: &audit.Change{Offset: &off, Length: &n}, Status: 204, Result: audit.OK,
		})
	}
}
