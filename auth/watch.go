package auth

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
	"time"
)

// settled is how long a file must not have changed for its stamp to say that it is
// as it was read: the clock of a file system is a coarse one.
const settled = 2 * time.Second

// A stamp is what a file looks like from the outside, after all links: so a file
// that was replaced, and one whose link leads elsewhere, have another.
type stamp struct {
	dev, ino     uint64
	size         int64
	mtime, ctime int64 // ns
	mode         fs.FileMode
}

func stampOf(info fs.FileInfo) stamp {
	s := stamp{size: info.Size(), mtime: info.ModTime().UnixNano(), mode: info.Mode()}
	if sys, ok := info.Sys().(*syscall.Stat_t); ok {
		s.dev, s.ino, s.ctime = sys.Dev, sys.Ino, sys.Ctim.Nano()
	}
	return s
}

// changed is when it did last, as far as it knows.
func (s stamp) changed() time.Time { return time.Unix(0, max(s.mtime, s.ctime)) }

// watched is what is known of the token file. It has one user at a time.
type watched struct {
	stamp stamp
	next  stamp     // what it was like at the last look, if that is not stamp
	read  time.Time // when it was
	sum   digest    // of what is in force
	seen  digest    // of what was read last
	mode  fs.FileMode
	said  string // what was logged of an error last, and about what; "" if all is well
}

// load reads the token file for the first time.
func (g *Guard) load() error {
	_, err := g.reload()
	if err != nil {
		return fmt.Errorf("auth: token file: %w", err)
	}
	return nil
}

// watch reads the file again when it changes, until ctx ends.
func (g *Guard) watch(ctx context.Context) {
	tick := time.NewTicker(g.timing.look)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			g.look()
		}
	}
}

// look reads the file if it has changed, and has stayed so since the last look: who
// writes to it in place may not be done, and half a file may be a good one. What is
// wrong with the new one is logged once, and the old grants stay.
func (g *Guard) look() {
	w := &g.file
	info, err := os.Stat(g.opt.File)
	var changed bool
	if err == nil {
		s := stampOf(info)
		switch {
		case s == w.stamp && w.read.Sub(s.changed()) > settled:
			return
		case s != w.stamp && s != w.next:
			w.next = s
			return
		}
		changed, err = g.reload()
	}
	switch {
	case err != nil:
		if text := err.Error() + string(w.seen[:]); text != w.said {
			w.said = text
			g.log.Error("the token file cannot be used, what it granted before stays", "file", g.opt.File, "error", err)
		}
	case changed || w.said != "":
		w.said = ""
		f := g.rules.Load()
		g.log.Info("token file read", "file", g.opt.File,
			"tokens", len(f.tokens), "certificates", len(f.certificates), "claims", len(f.claims))
	}
}

// reload reads the file and puts its rules in force. It reports whether it is
// another one than before.
func (g *Guard) reload() (changed bool, err error) {
	w := &g.file
	now := time.Now()
	text, s, err := readFile(g.opt.File)
	if err != nil {
		return false, err
	}
	if s.mode != w.mode && s.mode&0o004 != 0 {
		g.log.Warn("the token file can be read by everybody on this machine", "file", g.opt.File, "mode", s.mode.String())
	}
	w.mode = s.mode
	w.stamp, w.read, w.seen = s, now, sha256.Sum256(text)
	if w.seen == w.sum {
		return false, nil
	}
	f, err := parseFile(text)
	if err != nil {
		return false, err
	}
	if g.issuer == nil && len(f.claims) > 0 {
		g.log.Warn("the token file has claims, and there is no OIDC issuer", "file", g.opt.File)
	}
	if g.issuer != nil && len(f.claims) == 0 {
		g.log.Warn("there is an OIDC issuer, and the token file has no claims: no JWT will be accepted", "file", g.opt.File)
	}
	w.sum = w.seen
	g.rules.Store(g.newRules(f, g.rules.Load()))
	return true, nil
}

// readFile reads a file that nobody changes meanwhile.
func readFile(path string) ([]byte, stamp, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a FIFO is no reason to wait
	if err != nil {
		return nil, stamp{}, err
	}
	text, s, err := readOpen(f)
	return text, s, errors.Join(err, f.Close())
}

func readOpen(f *os.File) ([]byte, stamp, error) {
	before, err := f.Stat()
	if err != nil {
		return nil, stamp{}, err
	}
	if !before.Mode().IsRegular() {
		return nil, stamp{}, errors.New("is no regular file")
	}
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, stamp{}, err
	}
	after, err := f.Stat()
	if err != nil {
		return nil, stamp{}, err
	}
	if stampOf(before) != stampOf(after) {
		return nil, stamp{}, errors.New("changed while it was read")
	}
	return text, stampOf(after), nil
}
