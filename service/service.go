// Package service serves images by name: it finds their files, opens the layers
// below them as policy allows, shares one open handle between all requests, and
// closes what is idle.
//
// It guarantees that nothing outside the served directories is opened because
// an image says so, that a file's content never decides its format, and that a
// handle is of the files as they were at most a millisecond before it was
// acquired. It does not guarantee that they stay so while the handle is in use:
// another program may write to them, unless it honours the locks that are taken.
//
// A file is open once, whatever names lead to it, and has one writer: an image
// is upgraded in place by the first who writes, unless another image needs one of
// its files. While it is written to it is no part of another image.
package service

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/extentd/extentd/load"
	"github.com/extentd/extentd/state"
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
	// Blocksize makes any offset and length possible above a node, for formats
	// whose driver needs that: see Driver.Unaligned. Default: images of such
	// formats are not opened where the node has a minimum above 1.
	Blocksize func(ctx context.Context, next *storage.Node) (storage.File, error)
	// Idle is how long an image stays open after its last use. Default: 30 s.
	Idle time.Duration
	// Recheck is how long a look at the files of an open image holds: who
	// acquires the image within it gets the handle as it is. Default: 1 ms;
	// negative: every acquire looks.
	Recheck time.Duration
	// MaxOpen is how many images are open at a time; beyond it the one that is
	// idle longest is closed, and if none is idle, an open waits. Default: 256.
	MaxOpen int
	// OpenWait is how long it waits at most; then it fails with load.ErrBusy.
	// Default: 10 s.
	OpenWait time.Duration
	// CacheSize is the memory in bytes that the open images share for their
	// caches, of metadata and of decompressed clusters. Many at a time may take
	// some more: 1 MiB each, and 256 KiB a layer. Default: 128 MiB.
	CacheSize int64
	// TopOnly opens no backing. Such images are described and checked; what
	// they defer to their backing reads as zeros, and they are not to be
	// written to. Default: false.
	TopOnly bool
	// ReadOnly refuses every change with storage.ErrReadOnly. Default: false.
	ReadOnly bool
	// State is where allocations are recorded. It is closed by whoever made it,
	// after the service. Default: they do not survive a restart.
	State *state.DB
	// AllocationTTL is how long an allocation lives after its last use.
	// Default: 1 h.
	AllocationTTL time.Duration
	// Observe puts something in the place of the node that an image stands on,
	// to see what is asked of it: a file that owns next, and has its abilities.
	// Default: nodes are as they are.
	Observe func(next *storage.Node) (storage.File, error)
	// Trace is told of work that takes long, such as the opening of an image:
	// when it begins, and by end, how it went. It is done in the context that
	// Trace returns. Default: nobody is told.
	Trace func(ctx context.Context, work, image string) (_ context.Context, end func(err error))
	// OnError is told what went wrong where nobody waits for an answer: that an
	// image that was written to could not be flushed, or closed cleanly. The
	// image is its name. Default: nobody is.
	OnError func(image string, err error)
	// Check verifies what every driver and file reports. Default: false.
	Check bool
}

const (
	defaultIdle    = 30 * time.Second
	defaultRecheck = time.Millisecond
	defaultMaxOpen = 256
	defaultWait    = 10 * time.Second
	defaultCache   = 128 << 20
)

// A Service is safe for concurrent use.
type Service struct {
	opt    Options
	roots  []root // the served directory first, if there is one
	images map[string]ImageSpec

	always context.Context // never ends: for what is done without anybody's context
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	work   sync.WaitGroup // the janitor, and flights
	tokens chan struct{}  // one for each image that is open or being opened
	listed chan struct{}  // one for each image that a listing has open
	hungry atomic.Int32   // opens that wait for a token
	caches budget
	unpack *load.Memory // what reads hold while they decompress
	ledger *ledger      // of allocations
	tally  tally
	files  fileTable

	epoch        string        // random
	deviceWrites atomic.Uint64 // images on block devices that were written to and closed
	keptMu       sync.Mutex
	kept         map[imageKey]keptGenerations // guarded by keptMu
	peeks        peekCache

	mu      sync.RWMutex // protects all below; not held during any I/O
	closed  bool
	open    map[string]*Handle // by image name; each holds one reference
	flights map[string]*flight // opens under way, by image name
	shared  map[imageKey]*sharedImage
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
	if opt.OpenWait <= 0 {
		opt.OpenWait = defaultWait
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
		shared:  make(map[imageKey]*sharedImage),
		epoch:   rand.Text(),
		kept:    make(map[imageKey]keptGenerations),
		caches:  newBudget(opt.CacheSize, opt.MaxOpen),
		unpack:  load.NewMemory(max(opt.CacheSize/4, leastUnpack), nil),
		tally: tally{
			images: make(map[*image]struct{}), graphs: make(map[*openGraph]struct{}),
			filters: make(map[FilterCounter]int64), leaked: make(map[string]int64),
		},
		always: context.Background(),
	}
	s.files = fileTable{openGraph: s.openGraph, open: make(map[tableKey]*sharedFile)}
	if err := s.addImages(opt.Images); err != nil {
		return nil, err
	}
	if err := s.openRoots(); err != nil {
		return nil, errors.Join(err, s.closeRoots())
	}
	var err error
	if s.ledger, err = newLedger(&opt); err != nil {
		return nil, errors.Join(err, s.closeRoots())
	}
	s.ctx, s.cancel = context.WithCancel(s.always)
	s.work.Go(s.janitor)
	s.work.Go(s.expire)
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
		if spec.Graph != nil {
			spec.Graph.Node.Path = spec.Path
		}
		s.images[spec.Name] = spec
	}
	return nil
}

// Close closes what is idle and waits for the goroutines of the service. A
// handle that is still in use is closed by its last Release. An error may say
// that something that was written is not on disk.
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
	errs := []error{s.suspend()}
	for _, h := range idle {
		if h.refs.Add(-1) > 0 {
			continue
		}
		if err := h.close(); err != nil {
			errs = append(errs, fmt.Errorf("image %q: %w", h.name, err))
		}
	}
	errs = append(errs, s.files.close())
	s.ledger.store.close()
	return errors.Join(append(errs, s.closeRoots())...)
}

// report tells of what went wrong in the background.
func (s *Service) report(image string, err error) {
	if err != nil && s.opt.OnError != nil {
		s.opt.OnError(image, err)
	}
}
