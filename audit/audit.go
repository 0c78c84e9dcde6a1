// Package audit writes down every change and every attempt at one: who, what, and
// with what result. A record is a line of JSON.
//
// It guarantees that a record has been handed to the operating system when Write
// returns, in one piece and after those that were there, and that it holds no
// body and no secret. It does not guarantee that the record is on disk, nor that
// there is one of what a process was doing when it was killed. A record that
// cannot be written is counted and told of, and does not hold up what it is about.
package audit

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Options configure a log.
type Options struct {
	// File is what records are appended to; it is made for its owner alone
	// (0600). Where it is renamed or removed it is made anew within a second.
	// Default: they go to Writer.
	File string
	// Writer takes records, a Write each, if there is no File. Default: they go
	// nowhere.
	Writer io.Writer
	// Logger is told of records that could not be written, once a minute.
	// Default: nobody is.
	Logger *slog.Logger
}

// A Log is safe for concurrent use. A nil Log takes records and drops them.
type Log struct {
	opt    Options
	file   atomic.Pointer[os.File] // nil where there is no Options.File
	told   atomic.Int64            // when of a failure was told, Unix nanoseconds
	stop   chan struct{}           // closed to end the keeper
	keeper sync.WaitGroup

	records, failures atomic.Uint64

	reopening sync.Mutex // held while the file is opened anew
}

// keepTime is how often it is looked whether the file is still where it was.
const keepTime = time.Second

// New opens the file. The log must be closed.
func New(opt Options) (*Log, error) {
	if opt.Logger == nil {
		opt.Logger = slog.New(slog.DiscardHandler)
	}
	if opt.Writer == nil {
		opt.Writer = io.Discard
	}
	l := &Log{opt: opt, stop: make(chan struct{})}
	if opt.File == "" {
		return l, nil
	}
	f, err := open(opt.File)
	if err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	l.file.Store(f)
	l.keeper.Go(l.keep)
	return l, nil
}

func open(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
}

// Write appends a record. It sets what is always the same.
func (l *Log) Write(r *Record) {
	if l == nil {
		return
	}
	r.Level, r.Message, r.Audit = "INFO", "audit", true
	line, err := json.Marshal(r)
	if err == nil {
		err = l.append(append(line, '\n'))
	}
	if err != nil {
		l.failures.Add(1)
		l.tell(err)
		return
	}
	l.records.Add(1)
}

// append writes a line at the end.
func (l *Log) append(line []byte) error {
	for {
		f := l.file.Load()
		if f == nil {
			_, err := l.opt.Writer.Write(line)
			return err
		}
		n, err := f.Write(line)
		if n == 0 && errors.Is(err, os.ErrClosed) && l.file.Load() != f { // it was opened anew meanwhile
			continue
		}
		return err
	}
}

// tell tells of a failure, unless that was done just now.
func (l *Log) tell(err error) {
	now, last := time.Now().UnixNano(), l.told.Load()
	if last != 0 && now-last < int64(time.Minute) || !l.told.CompareAndSwap(last, now) {
		return
	}
	l.opt.Logger.Error("an audit record could not be written", "error", err, "failures", l.failures.Load())
}

// keep opens the file anew when it has been renamed or removed, until the log is
// closed.
func (l *Log) keep() {
	ticker := time.NewTicker(keepTime)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			if !l.inPlace() {
				if err := l.Reopen(); err != nil {
					l.tell(err)
				}
			}
		case <-l.stop:
			return
		}
	}
}

// inPlace reports whether the path leads to the open file.
func (l *Log) inPlace() bool {
	there, err := os.Stat(l.opt.File)
	if err != nil {
		return !errors.Is(err, os.ErrNotExist)
	}
	ours, err := l.file.Load().Stat()
	return err == nil && os.SameFile(there, ours)
}

// Reopen opens the file anew, by its name. On an error records go where they went
// before. Without a file it does nothing.
func (l *Log) Reopen() error {
	if l == nil || l.opt.File == "" {
		return nil
	}
	l.reopening.Lock()
	defer l.reopening.Unlock()
	f, err := open(l.opt.File)
	if err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	return l.file.Swap(f).Close()
}

// Stats are how many records were written, and how many could not be.
func (l *Log) Stats() (records, failures uint64) {
	if l == nil {
		return 0, 0
	}
	return l.records.Load(), l.failures.Load()
}

// Close closes the file. What is written after it fails. It is called once.
func (l *Log) Close() error {
	if l == nil {
		return nil
	}
	close(l.stop)
	l.keeper.Wait()
	if f := l.file.Load(); f != nil {
		return f.Close()
	}
	return nil
}
