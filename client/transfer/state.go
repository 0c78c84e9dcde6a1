package transfer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

const (
	stateVersion = 1
	maxState     = 1 << 20 // more than any state has, bytes
)

// A State is what a copy that was interrupted goes on from. It is kept in a small
// file; nothing in it is secret.
type State struct {
	Version int      `json:"version"`
	Source  Endpoint `json:"source"`
	Target  Endpoint `json:"target"`
	NoSum   bool     `json:"no_sum,omitempty"`
	Point   Point    `json:"point"`
}

// An Endpoint is what a state knows an end of a copy by.
type Endpoint struct {
	// Name is where it is, without what authenticates.
	Name   string `json:"name"`
	Format string `json:"format,omitempty"`
	Size   int64  `json:"size"`
	// Tag changes with the content of a source, and with a target's being another
	// one; "" if it cannot be told.
	Tag string `json:"tag,omitempty"`
}

// LoadState reads the file. The error wraps os.ErrNotExist if there is none.
func LoadState(path string) (State, error) {
	f, err := os.Open(path)
	if err != nil {
		return State{}, err
	}
	defer f.Close() //nolint:errcheck // it is only read
	text, err := io.ReadAll(io.LimitReader(f, maxState+1))
	if err != nil {
		return State{}, err
	}
	var s State
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&s); err != nil || len(text) > maxState {
		return State{}, fmt.Errorf("%s is not the state of a copy", path)
	}
	if s.Version != stateVersion {
		return State{}, fmt.Errorf("%s is the state of a copy by another version", path)
	}
	return s, nil
}

// Save writes the file, durably and at once: it holds the old state or the new one.
func (s State) Save(path string) error {
	s.Version = stateVersion
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	temp := path + ".tmp"
	f, err := os.OpenFile(temp, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(text, '\n'))
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(temp))
	}
	return SyncDir(filepath.Dir(path))
}

// SyncDir makes the names in a directory durable.
func SyncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// CheckSame reports how the ends of a copy differ from those that the state is of.
func (s *State) CheckSame(source, target Endpoint) error {
	switch {
	case s.Source.Name != source.Name || s.Source.Format != source.Format:
		return fmt.Errorf("the copy that was interrupted was one of %s", s.Source)
	case s.Source.Size != source.Size || s.Source.Tag != source.Tag:
		return fmt.Errorf("%w since the copy was interrupted", ErrChanged)
	case s.Target.Name != target.Name || s.Target.Format != target.Format:
		return fmt.Errorf("the copy that was interrupted was one to %s", s.Target)
	case s.Target.Size != target.Size || s.Target.Tag != target.Tag:
		return fmt.Errorf("%w since the copy was interrupted: it is another one, or has another size", ErrOtherTarget)
	}
	return nil
}

// String is its name, and its format if there is one.
func (e Endpoint) String() string {
	if e.Format == "" {
		return e.Name
	}
	return e.Name + " (" + e.Format + ")"
}
