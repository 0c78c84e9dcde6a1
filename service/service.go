// Package service serves images by name: it finds their files, opens the layers
// below them as policy allows, shares one open handle between all requests, and
// closes what is idle.
//
// It guarantees that nothing outside the served directories is opened because
// an image says so, that a file's content never decides its format, and that a
// handle is of the files as they were at most a millisecond before it was
// acquired. It does not guarantee that they stay so while the handle is in use:
// another program may write to them, unless it honours the locks that are taken.
package service

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/extentd/extentd/storage"
)

// Options configure a service. The zero value serves nothing.
type Options struct {
	// Dir is the directory whose images are served. Default: none.
	Dir string
	// Images are served beside those in Dir, and hide those of the same name.
	Images []ImageSpec
	// BackingDirs hold files that images may name as backing or data file,
	// beside those in Dir. Their files are not served as images.
	BackingDirs []string
	// FollowBacking says which names stored in images are followed. Default:
	// FollowRoot.
	FollowBacking Follow
	// Formats are the drivers, by the name of their format. Default: none.
	Formats map[string]Driver
	// Idle is how long an image stays open after its last use. Default: 30 s.
	Idle time.Duration
	// Recheck is how long a look at the files of an open image holds: who
	// acquires the image within it gets the handle as it is. Default: 1 ms;
	// negative: every acquire looks.
	Recheck time.Duration
	// MaxOpen is how many images are open at a time; beyond it the one that is
	// idle longest is closed, and if none is idle, an open waits. Default: 256.
	MaxOpen int
	// CacheSize is the memory in bytes that the open images share for their
	// caches, of metadata and of decompressed clusters. Many at a time may take
	// some more: 1 MiB each, and 256 KiB a layer. Default: 128 MiB.
	CacheSize int64
	// TopOnly opens no backing. Such images are described; what they defer to
	// their backing reads as zeros. Default: false.
	TopOnly bool
	// Check verifies what every driver and file reports. Default: false.
	Check bool
}

const (
	defaultIdle    = 30 * time.Second
	defaultRecheck = time.Millisecond
	defaultMaxOpen = 256
	defaultCache   = 128 << 20
)

// A Service is safe for concurrent use.
type Service struct {
	opt    Options
	roots  []root // the served directory first, if there is one
	images map[string]ImageSpec

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	work   sync.WaitGroup // the janitor, and flights
	tokens chan struct{}  // one for each image that is open or being opened
	listed chan struct{}  // one for each image that a listing has open
	hungry atomic.Int32   // opens that wait for a token
	caches budget

	mu      sync.RWMutex // protects all below; not held during any I/O
	closed  bool
	open    map[string]*Handle // by image name; each holds one reference
	flights map[string]*flight // opens under way, by image name
}

// New opens the directories and checks what the options name. The images
// themselves are opened at their first use.
func New(opt Options) (*Service, error) {
	if opt.Idle <= 0 {
		opt.Idle = defaultIdle
	}
	if opt.Recheck == 0 {
		opt.Recheck = defaultRecheck
	}
	if opt.MaxOpen <= 0 {
		opt.MaxOpen = defaultMaxOpen
	}
	if opt.CacheSize <= 0 {
		opt.CacheSize = defaultCache
	}
	opt.Formats = maps.Clone(opt.Formats)
	s := &Service{
		opt:     opt,
		images:  make(map[string]ImageSpec, len(opt.Images)),
		tokens:  make(chan struct{}, opt.MaxOpen),
		listed:  make(chan struct{}, maxListed),
		open:    make(map[string]*Handle),
		flights: make(map[string]*flight),
		caches:  budget{free: opt.CacheSize},
	}
	if err := s.addImages(opt.Images); err != nil {
		return nil, err
	}
	if err := s.openRoots(); err != nil {
		return nil, errors.Join(err, s.closeRoots())
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.work.Go(s.janitor)
	return s, nil
}

func (s *Service) addImages(specs []ImageSpec) error {
	for _, spec := range specs {
		if err := spec.check(s.opt.Formats); err != nil {
			return err
		}
		if _, twice := s.images[spec.Name]; twice {
			return fmt.Errorf("service: image %s is given twice", spec.Name)
		}
		for _, path := range []*string{&spec.Path, &spec.DataFile} {
			if *path == "" {
				continue
			}
			abs, err := filepath.Abs(*path)
			if err != nil {
				return fmt.Errorf("service: image %s: %w", spec.Name, err)
			}
			*path = abs
		}
		s.images[spec.Name] = spec
	}
	return nil
}

// Close closes what is idle and waits for the goroutines of the service. A
// handle that is still in use is closed by its last Release.
func (s *Service) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return fmt.Errorf("service: %w", storage.ErrClosed)
	}
	s.closed = true
	idle := make([]*Handle, 0, len(s.open))
	for _, h := range s.open {
		idle = append(idle, h)
	}
	clear(s.open)
	s.mu.Unlock()
	s.cancel()
	s.work.Wait()
	for _, h := range idle {
		h.Release()
	}
	return s.closeRoots()
}
