package client

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"
)

// maxToken is more than any token or JWT has, bytes.
const maxToken = 64 << 10

// A tokens says what a request is authenticated with.
type tokens struct {
	fixed string
	path  string // "" for a fixed one

	mu    sync.Mutex // protects what the file held; the file is read under it
	held  string
	size  int64
	mtime time.Time
}

func newTokens(opt *Options) (*tokens, error) {
	switch {
	case opt.Ticket != "":
		return &tokens{fixed: opt.Ticket}, nil
	case opt.TokenFile == "":
		return &tokens{fixed: strings.TrimSpace(opt.Token)}, nil
	}
	t := &tokens{path: opt.TokenFile}
	_, err := t.current()
	return t, err
}

// current is the token now, "" for none. A file that cannot be read for a moment,
// because it is being replaced, leaves the token that it held.
func (t *tokens) current() (string, error) {
	if t.path == "" {
		return t.fixed, nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	info, err := os.Stat(t.path)
	if err == nil && t.held != "" && info.Size() == t.size && info.ModTime().Equal(t.mtime) {
		return t.held, nil
	}
	var text []byte
	if err == nil && info.Size() > maxToken {
		err = errors.New("it is too long")
	}
	if err == nil {
		text, err = os.ReadFile(t.path)
	}
	token := strings.TrimSpace(string(text))
	if err == nil && (token == "" || strings.ContainsAny(token, " \t\r\n")) {
		err = errors.New("it holds no token, or several")
	}
	if err != nil {
		if t.held != "" {
			return t.held, nil
		}
		return "", fmt.Errorf("client: token file %s: %w", t.path, bare(err))
	}
	t.held, t.size, t.mtime = token, info.Size(), info.ModTime()
	return token, nil
}

// bare is an error without the path that stands in front of it already.
func bare(err error) error {
	if where, ok := errors.AsType[*os.PathError](err); ok {
		return where.Err
	}
	return err
}
