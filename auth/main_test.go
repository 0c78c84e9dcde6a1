package auth_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/extentd/extentd/auth"
	"github.com/extentd/extentd/state"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var here = netip.MustParseAddr("192.0.2.7")

// start returns a guard that looks at its file often, and is closed at the end.
func start(t testing.TB, opt auth.Options) *auth.Guard {
	t.Helper()
	g, err := auth.NewQuick(t.Context(), opt, time.Minute, time.Minute, time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	})
	return g
}

// kept is a state in a directory.
func kept(t testing.TB, dir string) *state.DB {
	t.Helper()
	db := state.New(dir)
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

// write writes a token file, and returns its path.
func write(t testing.TB, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "tokens.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// rewrite replaces a file.
func rewrite(t testing.TB, path, text string) {
	t.Helper()
	next := filepath.Join(t.TempDir(), "next")
	if err := os.WriteFile(next, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, path); err != nil {
		t.Fatal(err)
	}
}

func hash(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

// token is an entry of a token file.
func token(name, secret, verbs, images string) string {
	return "- {name: " + name + ", sha256: " + hash(secret) + ", grants: [{verbs: [" + verbs + "], images: [" + images + "]}]}\n"
}

func bearer(t testing.TB, g *auth.Guard, secret string) *auth.Caller {
	t.Helper()
	c, err := g.Bearer(t.Context(), here, secret)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// refused wants what is presented to be refused, with a text that holds the reason,
// and no part of the secret.
func refused(t testing.TB, g *auth.Guard, secret, reason string) {
	t.Helper()
	c, err := g.Bearer(t.Context(), here, secret)
	if !errors.Is(err, auth.ErrUnauthenticated) {
		t.Fatalf("caller %v, error %v, want one that wraps ErrUnauthenticated", c, err)
	}
	if !strings.Contains(err.Error(), reason) {
		t.Errorf("error %q, want %q", err, reason)
	}
	for part := range strings.SplitSeq(secret, ".") {
		if len(part) > 8 && strings.Contains(err.Error(), part) {
			t.Errorf("error holds the secret: %q", err)
		}
	}
}

// eventually waits until what was asked for is so.
func eventually(t testing.TB, what string, so func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !so(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within 20 s", what)
		}
	}
}

// A journal is a log that tests read.
type journal struct {
	mu   sync.Mutex // protects text
	text bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.Write(p)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.String()
}

func (j *journal) logger() *slog.Logger {
	return slog.New(slog.NewJSONHandler(j, &slog.HandlerOptions{Level: slog.LevelDebug}))
}
