package service

import (
	"context"
	"errors"
	"time"

	"github.com/extentd/extentd/storage"
)

// expire gives back what nobody has used for its time, until the service is
// closed.
func (s *Service) expire() {
	ticker := time.NewTicker(min(max(s.ledger.ttl/10, time.Millisecond), time.Minute))
	defer ticker.Stop()
	for {
		select {
		case now := <-ticker.C:
			s.expireAt(now)
		case <-s.ctx.Done():
			return
		}
	}
}

// expireAt ends what has expired by then, and records what lives on. What is
// dormant is resumed first: that gives it back. This is tried once, for its image
// may be in use by another process.
func (s *Service) expireAt(now time.Time) {
	l := s.ledger
	var over, late []*allocation
	var broken []*image
	wake := map[string]bool{}
	err := l.record(func(c *change) {
		for _, a := range l.byID {
			switch {
			case !a.idle():
				l.renew(a)
			case a.Expires.After(now):
			case a.i != nil && !a.i.isBroken():
				over = append(over, a)
			case a.i == nil && !a.sought:
				a.sought = true
				wake[a.Image] = true
			}
		}
		for _, acc := range l.accounts {
			if acc.i != nil && acc.i.isBroken() {
				broken = append(broken, acc.i)
			}
		}
		for _, a := range over {
			l.strike(a)
		}
		c.remove(over)
		late = l.late()
		l.update(c, late...)
	})
	if err != nil {
		l.undo(over, late)
		s.report("", err)
		return
	}
	for _, a := range over {
		s.report(a.Image, a.free(context.WithoutCancel(s.ctx), a.i))
	}
	for _, i := range broken {
		s.report("", s.detach(i))
	}
	for image := range wake {
		s.resumeExpired(image)
	}
}

// resumeExpired opens an image for what of it has expired.
func (s *Service) resumeExpired(image string) {
	h, err := s.AcquireWritable(s.ctx, image)
	switch {
	case err == nil:
		h.Release()
	case errors.Is(err, storage.ErrNotFound):
		s.report(image, s.bury(image, nil))
	}
}

// late is what the store has older records of. l.mu must be held.
func (l *ledger) late() []*allocation {
	var late []*allocation
	for _, a := range l.byID {
		if a.late {
			late = append(late, a)
		}
	}
	return late
}

// undo is for a change that could not be made durable.
func (l *ledger) undo(struck, late []*allocation) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range struck {
		l.enter(a)
	}
	for _, a := range late {
		a.late = true
	}
}

// detach makes the allocations of an image dormant that is to be opened anew. If
// a failed write took it out of service, what was filled may be lost: then they
// end when they are resumed.
func (s *Service) detach(i *image) error {
	l := s.ledger
	held := 0
	err := l.record(func(c *change) {
		acc := l.accounts[fileOf(i)]
		if acc == nil || acc.i != i {
			return
		}
		acc.i = nil
		lost := i.hasFailed()
		for _, a := range acc.allocations {
			if a.i != i {
				continue
			}
			held++
			a.i, a.claims = nil, nil
			if lost {
				a.Doomed = true
				l.update(c, a)
			}
		}
		l.tidy(acc)
	})
	errs := []error{err}
	for range held {
		errs = append(errs, s.putImage(i))
	}
	return errors.Join(errs...)
}

// detachBroken detaches what of the file is out of service, so that it can be
// opened anew.
func (s *Service) detachBroken(key fileKey) {
	l := s.ledger
	l.mu.Lock()
	var broken []*image
	for _, acc := range l.accounts {
		same := acc.key == key || key.graph != "" && acc.key.graph == key.graph // whatever it stands on
		if same && acc.i != nil && acc.i.isBroken() {
			broken = append(broken, acc.i)
		}
	}
	l.mu.Unlock()
	for _, i := range broken {
		s.report("", s.detach(i))
	}
}

// suspend lets go of all images, when the service closes. What is recorded is
// resumed by the next.
func (s *Service) suspend() error {
	l := s.ledger
	var open []*image
	err := l.record(func(c *change) {
		l.update(c, l.late()...)
		for _, acc := range l.accounts {
			if acc.i != nil {
				open = append(open, acc.i)
			}
		}
	})
	errs := []error{err}
	for _, i := range open {
		errs = append(errs, s.detach(i))
	}
	return errors.Join(errs...)
}
