package rate

import (
	"container/list"
	"context"
	"math"
	"sync"
	"time"

	"github.com/extentd/extentd/storage/filter"
)

// A bucket fills with tokens at a steady rate, up to the burst. A token is a
// byte. Who takes more than there are leaves a debt, and waits until it is paid;
// nobody takes any before that.
type bucket struct {
	rate, burst float64 // tokens a second, tokens

	mu      sync.Mutex // protects all below; not held while anybody waits
	tokens  float64    // negative: a debt, of the first waiter
	as      time.Time  // when there were so many
	waiters list.List  // of chan struct{}, closed when it is the first
}

// newBucket returns a full bucket, or nil where there is no bound.
func newBucket(rate, burst int64) *bucket {
	if rate == 0 {
		return nil
	}
	if burst == 0 {
		burst = rate
	}
	return &bucket{rate: float64(rate), burst: float64(burst), tokens: float64(burst), as: time.Now()}
}

// take waits until n tokens are the caller's. If ctx ends before, none are, and
// the error is ctx's.
func (b *bucket) take(ctx context.Context, n int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	b.mu.Lock()
	if b.fill(); b.waiters.Len() == 0 && b.tokens >= float64(n) {
		b.tokens -= float64(n)
		b.mu.Unlock()
		return nil
	}
	turn := make(chan struct{})
	me := b.waiters.PushBack(turn)
	if b.waiters.Front() == me {
		close(turn)
	}
	b.mu.Unlock()
	defer b.leave(me)
	select {
	case <-turn:
		return b.wait(ctx, n)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// wait takes n tokens for the first waiter, and waits for those that are not
// there yet. If ctx ends before, it gives all of them back.
func (b *bucket) wait(ctx context.Context, n int64) error {
	b.mu.Lock()
	b.fill()
	b.tokens -= float64(n)
	debt := time.Duration(math.MaxInt64)
	if ns := math.Ceil(-b.tokens / b.rate * float64(time.Second)); ns < math.MaxInt64 {
		debt = time.Duration(ns)
	}
	b.mu.Unlock()
	err := filter.Wait(ctx, debt)
	if err != nil {
		b.mu.Lock()
		b.tokens += float64(n)
		b.mu.Unlock()
	}
	return err
}

// leave takes a waiter off the list, and lets the next one be the first.
func (b *bucket) leave(me *list.Element) {
	b.mu.Lock()
	defer b.mu.Unlock()
	first := b.waiters.Front() == me
	b.waiters.Remove(me)
	if next := b.waiters.Front(); first && next != nil {
		close(next.Value.(chan struct{}))
	}
}

// fill adds the tokens of the time that has gone by. b.mu must be held.
func (b *bucket) fill() {
	now := time.Now()
	b.tokens = min(b.burst, b.tokens+b.rate*now.Sub(b.as).Seconds())
	b.as = now
}
