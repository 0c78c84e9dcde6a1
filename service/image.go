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
	broken  atomic.Bool   // it is handed out no more
	flushed flushState
	updates sync.RWMutex // held by each update of the map, see HoldMap
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
	if keyOf(i.chain.files[0].identity) != key.file { // it was replaced meanwhile: for this name alone
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

// current reports whether the files are what they were when the image was
// opened; id is what its name leads to now. Its own files are what we made of
// them once we write: nobody else can.
func (i *image) current(id file.Identity) bool {
	if i.isBroken() {
		return false
	}
	top := &i.chain.files[0]
	writing := i.writing.Load()
	if id != top.identity && (!writing || !id.SameFile(top.identity)) {
		return false
	}
	for n := 1; n < len(i.chain.files); n++ {
		f := &i.chain.files[n]
		if writing && f.node == i.chain.layers[0].data {
			continue
		}
		if id, err := f.shared.file.Identity(); err != nil || id != f.identity {
			return false
		}
	}
	return true
}

// isBroken reports whether the image must be opened anew.
func (i *image) isBroken() bool {
	if i.broken.Load() {
		return true
	}
	if i.failed == nil || !i.failed() {
		return false
	}
	i.fail()
	return true
}

// fail hands the image out no more. What it was writing to can be opened anew:
// it writes no more.
func (i *image) fail() {
	i.broken.Store(true)
	i.s.forget(i)
	files := i.written()
	i.s.files.spend(files)
	i.s.files.release(i, files)
}

// written are the files that the image writes to.
func (i *image) written() []*sharedFile {
	files := []*sharedFile{i.chain.files[0].shared}
	data := i.chain.layers[0].data
	for n := range i.chain.files {
		if f := &i.chain.files[n]; data != nil && f.node == data {
			files = append(files, f.shared)
		}
	}
	return files
}

// close runs once: nobody has the image, and nobody can find it.
func (i *image) close() error {
	err := i.chain.closeLayers()
	if i.writing.Load() {
		clean := err == nil && !i.isBroken()
		if clean {
			i.s.keep(i)
		}
		err = errors.Join(err, i.s.ledger.closing(i, clean))
		if i.chain.files[0].identity.Device {
			i.s.deviceWrites.Add(1)
		}
		i.s.files.release(i, i.written())
	}
	err = errors.Join(err, i.chain.closeFiles())
	if !i.writing.Load() || i.broken.Load() {
		return nil // nothing was written, or who wrote was told that it failed
	}
	return err
}
