package file

import (
	"context"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"github.com/extentd/extentd/storage"
)

const (
	data = storage.Alloc | storage.OffsetValid
	hole = storage.Zero | storage.OffsetValid
)

// batch is the most extents that one call adds, so that whoever collects them
// needs little memory.
const batch = 1024

// attempts are how often an extent is looked for that changes all the while.
const attempts = 4

// Extents appends what the file system says of [off, off+n): data where storage
// is allocated, zeros where there is a hole. It stops after a batch of extents,
// and the last one is reported as far as it goes. A range that is empty or not
// inside the file fails with [storage.ErrOutOfRange], also when the file has
// just become shorter. A file system that knows no holes has one data extent.
func (f *File) Extents(ctx context.Context, off, n int64, into *storage.ExtentList) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	size, err := f.seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	if err := storage.CheckRange(off, n, size); err != nil {
		return err
	}
	if n == 0 {
		return fmt.Errorf("%w: no extents of an empty range at %d", storage.ErrOutOfRange, off)
	}
	s := seeker{f: f, at: off, size: size}
	_, end := into.Window()
	end = min(off+n, end)
	for range batch {
		m, err := s.next()
		if err != nil {
			if s.at > off && errors.Is(err, storage.ErrOutOfRange) {
				return nil // the file ends here by now, and the next call will say so
			}
			return err
		}
		if err := into.Add(m); err != nil {
			return err
		}
		if m.End() >= end {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}

// A seeker goes from extent to extent. It costs one system call for each: where
// data begins is where the hole before it ended. The file may change meanwhile;
// where the answers keep contradicting each other, it says data, which is never
// wrong.
type seeker struct {
	f      *File
	at     int64
	size   int64 // not larger than the file at the last look
	atData bool  // the last extent was a hole and ended here
}

// next is the extent at s.at, or an error that wraps ErrOutOfRange where the
// file ends.
func (s *seeker) next() (storage.Mapping, error) {
	if s.at >= s.size {
		return storage.Mapping{}, s.shrunk()
	}
	for range attempts {
		if !s.atData && !s.f.noHoles.Load() {
			begin, err := s.f.seek(s.at, unix.SEEK_DATA)
			switch {
			case errors.Is(err, unix.ENXIO): // no data up to the end
				return s.tail()
			case noSupport(err):
				s.f.noHoles.Store(true)
			case err != nil:
				return storage.Mapping{}, err
			case begin > s.at:
				s.atData = true
				return s.extent(begin, hole)
			}
		}
		if s.f.noHoles.Load() {
			break
		}
		s.atData = false
		end, err := s.f.seek(s.at, unix.SEEK_HOLE)
		switch {
		case errors.Is(err, unix.ENXIO):
			return storage.Mapping{}, s.shrunk()
		case err != nil:
			return storage.Mapping{}, err
		case end > s.at:
			return s.extent(end, data)
		}
	}
	return s.extent(s.size, data)
}

// tail is the hole that reaches to the end of the file. The size from before
// the seek bounds it: where the file has grown since, there may be data.
func (s *seeker) tail() (storage.Mapping, error) {
	size, err := s.f.seek(0, io.SeekEnd)
	if err != nil {
		return storage.Mapping{}, err
	}
	s.size = min(s.size, size)
	if s.at >= s.size {
		return storage.Mapping{}, s.shrunk()
	}
	return s.extent(s.size, hole)
}

// extent is the extent from s.at to end, which lies past the size only when the
// file has grown.
func (s *seeker) extent(end int64, status storage.Status) (storage.Mapping, error) {
	if end > s.size {
		size, err := s.f.seek(0, io.SeekEnd)
		if err != nil {
			return storage.Mapping{}, err
		}
		s.size = max(s.size, size)
		end = min(end, s.size)
	}
	m := storage.Mapping{Offset: s.at, Length: end - s.at, NodeOffset: s.at, Status: status}
	s.at = end
	return m, nil
}

func (s *seeker) shrunk() error {
	return fmt.Errorf("%w: the file ends before %d now", storage.ErrOutOfRange, s.at)
}

// seek is lseek. It moves the position of the descriptor, which nobody uses:
// SEEK_DATA, SEEK_HOLE and SEEK_END do not depend on it, so concurrent calls do
// not disturb each other.
func (f *File) seek(off int64, whence int) (int64, error) {
	at, err := f.seeks.Seek(off, whence)
	return at, bare(err)
}

// noSupport: block devices say EINVAL, as file systems without SEEK_DATA do.
func noSupport(err error) bool {
	return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS)
}
