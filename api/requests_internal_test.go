package api

import (
	"context"
	"errors"
	"sync"
	"testing"
)

// TestRequests: whoever waits is woken when the last request ends, however many
// begin and end meanwhile.
func TestRequests(t *testing.T) {
	var q Requests
	if err := q.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	q.begin()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := q.Wait(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Wait with a request under way = %v", err)
	}
	var waiting, others sync.WaitGroup
	for range 4 {
		waiting.Go(func() {
			if err := q.Wait(t.Context()); err != nil {
				t.Error(err)
			}
		})
		others.Go(func() {
			for range 1000 {
				q.begin()
				q.end()
			}
		})
	}
	others.Wait()
	q.end()
	waiting.Wait()
	for range 2 { // and once more
		q.begin()
		q.end()
		if err := q.Wait(t.Context()); err != nil {
			t.Error(err)
		}
	}
}
