package client

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
	"unicode"
)

// maxProblem is more than any problem has, bytes.
const maxProblem = 1 << 20

// maxDetail is how much is told of what is no problem, bytes.
const maxDetail = 200

// Error is what went wrong, and what the server's log calls the request.
func (p *Problem) Error() string {
	text := fmt.Sprintf("%d %s", p.Status, p.Title)
	if p.Detail != "" {
		text += ": " + p.Detail
	}
	if p.RequestId != nil {
		text += " (request " + *p.RequestId + ")"
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar // whoever wrote it must not drive a terminal
	}, text)
}

// Kind is the last part of the problem's type: "not-found", "conflict",
// "precondition-failed", ... It is "" where a proxy answered, or nobody knows.
func (p *Problem) Kind() string {
	kind, found := strings.CutPrefix(p.Type, "/problems/")
	if !found {
		return ""
	}
	return kind
}

// Kind is that of the [Problem] that err wraps, "" for all other errors.
func Kind(err error) string {
	if p, ok := errors.AsType[*Problem](err); ok {
		return p.Kind()
	}
	return ""
}

// expect takes an answer: its body is the caller's if the status is one of those
// that are wanted. Otherwise it is closed, and the error is a *Problem.
func expect(resp *http.Response, want ...int) error {
	for _, status := range want {
		if resp.StatusCode == status {
			return nil
		}
	}
	defer resp.Body.Close() //nolint:errcheck // what it says is read
	p := new(Problem)
	kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxProblem))
	if kind != "application/problem+json" || err != nil || json.Unmarshal(text, p) != nil || p.Status == 0 {
		p = &Problem{Type: "about:blank", Title: http.StatusText(resp.StatusCode), Status: resp.StatusCode}
		if resp.Request != nil {
			p.Instance = resp.Request.URL.Path
		}
		if kind == "text/plain" || kind == "" { // a line by a proxy, or by a server under TLS
			line, _, _ := strings.Cut(strings.TrimSpace(string(text)), "\n")
			p.Detail = strings.ToValidUTF8(line[:min(len(line), maxDetail)], "")
		}
	}
	return p
}

// decode reads a JSON answer of the wanted status into v.
func decode(resp *http.Response, v any, want ...int) error {
	if err := expect(resp, want...); err != nil {
		return err
	}
	defer resp.Body.Close() //nolint:errcheck // it is read to its end
	d := json.NewDecoder(resp.Body)
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("the answer cannot be read: %w", err)
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<10)) // so that the connection is used again
	return nil
}

// done takes an answer without a body.
func done(resp *http.Response, want ...int) error {
	if err := expect(resp, want...); err != nil {
		return err
	}
	return resp.Body.Close()
}
