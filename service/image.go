package service

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/extentd/extentd/storage/block"
	"github.com/extentd/extentd/storage/file"
)

// An imageKey says what is opened how: names that share it share the image. For
// a format with children the directory counts, to which the names are relative
// that the image stores.
type imageKey struct {
	file                   fileKey
	format                 string
	dir, backing, dataFile string
}

func (s *Service) keyOf(top *source, id file.Identity) imageKey {
	if top.graph != nil { // its own, whatever it stands on
		return imageKey{file: top.key(id).file}
	}
	key := imageKey{file: keyOf(id), format: top.format}
	if s.opt.Formats[top.format].Children {
		key.dir = filepath.Dir(top.host)
		if top.spec != nil {
			key.backing, key.dataFile = top.spec.Backing, top.spec.DataFile
		}
	}
	return key
}

// An image is what is open once for all names that lead to its file. Its
// handles, one for each name, have a reference each.
type image struct {
	s      *Service
	name   string // the first one
	key    imageKey
	chain  chain
	device *block.Device
	counts counters
	failed func() bool // whether a failed write has taken the top layer out of service

	refs    int           // guarded by Service.mu
	turn    chan struct{} // of one: who has it upgrades the image, or changes it as a whole
	writing atomic.Bool   // it was upgraded
	broken  atomic.Bool   // a write has failed: it is handed out no more
	lost    atomic.Bool   // likewise, and it was counted
	retired atomic.Bool   // nor is it then, but who has it goes on
	flushed flushState
	updates sync.RWMutex // held by each update of the map, see HoldMap

	snapshots openSnapshots
}

// A sharedImage is an image that is open, or being opened or closed. Its fields
// are guarded by Service.mu.
type sharedImage struct {
	image *image        // nil while it is busy
	busy  chan struct{} // closed when it has been opened or closed; nil between
}

// openImage opens an image with all its layers, or shares it if it is open
// under another name. No lock is held.
func (s *Service) openImage(ctx context.Context, name string) (*Handle, error) {
	top, err := s.find(name)
	if err != nil {
		return nil, err
	}
	i, err := s.getImage(ctx, name, &top)
	if err != nil {
		return nil, err
	}
	return &Handle{s: s, name: name, top: top, image: i}, nil
}

func (s *Service) getImage(ctx context.Context, name string, top *source) (*image, error) {
	for {
		id, err := top.identify()
		if err != nil {
			return nil, fmt.Errorf("image %q: %w", name, err)
		}
		key := s.keyOf(top, id)
		s.mu.Lock()
		o := s.shared[key]
		switch {
		case o == nil:
			o = &sharedImage{busy: make(chan struct{})}
			s.shared[key] = o
			s.mu.Unlock()
			s.detachBroken(key.file)
			return s.loadImage(ctx, name, top, key, o)
		case o.busy != nil:
			busy := o.busy
			s.mu.Unlock()
			if err := wait(ctx, busy); err != nil {
				return nil, err
			}
		default:
			i := o.image
			i.refs++
			s.mu.Unlock()
			if i.current(id) {
				return i, nil
			}
			s.forget(i)
			s.report(name, s.detach(i))
			s.report(name, s.putImage(i))
		}
	}
}

// loadImage opens the image for all who wait for it.
func (s *Service) loadImage(ctx context.Context, name string, top *source, key imageKey, o *sharedImage) (*image, error) {
	c := &chain{s: s}
	i, err := c.open(ctx, name, *top)
	if err != nil {
		err = errors.Join(err, c.close())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	close(o.busy)
	o.busy = nil
	if err != nil {
		delete(s.shared, key)
		return nil, err
	}
	i.name, i.key, i.refs = name, key, 1
	if top.graph == nil && keyOf(i.chain.bases[0].identity) != key.file { // it was replaced meanwhile: for this name alone
		delete(s.shared, key)
		return i, nil
	}
	o.image = i
	return i, nil
}

// putImage gives a reference back. The last one closes the image; who opens it
// meanwhile waits. An error says that what was written may not be on disk.
func (s *Service) putImage(i *image) error {
	s.mu.Lock()
	if i.refs--; i.refs > 0 {
		s.mu.Unlock()
		return nil
	}
	o := s.shared[i.key]
	if o != nil && o.image == i {
		o.image, o.busy = nil, make(chan struct{})
	} else {
		o = nil
	}
	s.mu.Unlock()
	err := i.close()
	if o != nil {
		s.mu.Lock()
		delete(s.shared, i.key)
		close(o.busy)
		s.mu.Unlock()
	}
	return err
}

// forget shares the image with no one who comes.
func (s *Service) forget(i *image) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if o := s.shared[i.key]; o != nil && o.image == i {
		delete(s.shared, i.key)
	}
}

// current reports whether what the image stands on is what it was when the image
// was opened; id is what its name leads to now. Its own files are what we made
// of them once we write: nobody else can.
func (i *image) current(id file.Identity) bool {
	if i.isBroken() || i.stale() {
		return false
	}
	writing := i.writing.Load()
	for n, b := range i.chain.bases {
		g := b.graph
		if b.file == nil {
			continue
		}
		now := id
		if n > 0 || g != nil && g.precious() {
			var err error
			if now, err = b.file.file.Identity(); err != nil {
				return false
			}
		}
		ours := writing && i.writes(b) && (g == nil || g.through()) && now.SameFile(b.identity)
		if now != b.identity && !ours {
			return false
		}
	}
	return true
}

// targets are the bases that the image writes to, once it does.
func (i *image) targets() []*base {
	targets := i.chain.bases[:1:1]
	if data := i.chain.layers[0].data; data != nil {
		targets = append(targets, data)
	}
	return targets
}

// writes reports whether a base is one of the targets.
func (i *image) writes(b *base) bool {
	return b == i.chain.bases[0] || b == i.chain.layers[0].data
}

// stale reports whether something remote is known to be no longer what was
// opened. It asks nothing.
func (i *image) stale() bool {
	for _, b := range i.chain.bases {
		if g := b.graph; g != nil && !g.precious() && b.shared.graph.stale.Load() {
			return true
		}
	}
	return false
}

// isBroken reports whether the image must be opened anew.
func (i *image) isBroken() bool { return i.retired.Load() || i.hasFailed() }

// hasFailed reports whether a write has failed.
func (i *image) hasFailed() bool {
	if i.broken.Load() {
		return true
	}
	if i.failed == nil || !i.failed() {
		return false
	}
	i.lose()
	return true
}

// lose takes the image out of service after a write that failed.
func (i *image) lose() {
	if !i.lost.Swap(true) {
		i.s.tally.outOfService.Add(1)
	}
	i.fail()
}

// fail hands the image out no more. What it was writing to can be opened anew:
// it writes no more.
func (i *image) fail() {
	i.broken.Store(true)
	i.s.forget(i)
	if i.writing.Load() {
		i.chain.wrote(i.targets()...)
	}
	files := i.written()
	i.s.files.spend(files)
	i.s.files.release(i, files)
}

// retire hands the image out no more, because something below is no longer what
// was opened. Until who has it is done, nobody else writes to its files, and
// nobody reads what it writes to.
func (i *image) retire() {
	for _, b := range i.chain.bases {
		if b.shared.graph != nil && b.file == nil {
			b.shared.graph.stale.Store(true)
		}
	}
	i.retired.Store(true)
	i.s.forget(i)
}

// written are the files and graphs that the image writes to.
func (i *image) written() []*sharedFile {
	var files []*sharedFile
	for _, b := range i.targets() {
		files = append(files, b.files()...)
	}
	return files
}

// wrote changes the generations that are to be derived of what was written to,
// where nothing else shows it.
func (c *chain) wrote(to ...*base) {
	for _, b := range to {
		if g := b.shared.graph; g != nil {
			g.writes.Add(1)
		}
		if b.identity.Device {
			c.s.deviceWrites.Add(1)
		}
	}
}

// close runs once: nobody has the image, and nobody can find it.
func (i *image) close() error {
	err := errors.Join(i.snapshots.close(), i.chain.closeLayers())
	if i.writing.Load() {
		clean := err == nil && !i.hasFailed()
		i.chain.wrote(i.targets()...)
		if clean {
			i.s.keep(i)
		}
		err = errors.Join(err, i.s.ledger.closing(i, clean))
		i.s.files.release(i, i.written())
	}
	i.s.tally.leave(i)
	err = errors.Join(err, i.chain.closeBases())
	if !i.writing.Load() || i.broken.Load() {
		return nil // nothing was written, or who wrote was told that it failed
	}
	return err
}
