package policy

import (
	"fmt"
	"math/bits"

	"github.com/extentd/extentd/storage"
)

// Bounds of the limits, bytes; those of [storage.Limits].
const (
	maxMinimum   = 64 << 10
	minPreferred = 512
	maxPreferred = 2 << 20
	maxData      = 64 << 20
	maxRequest   = 4<<30 - 1
)

// check refuses limits that can be no node's, and, where they are to bind, those
// that the next node does not keep itself.
func check(l, below storage.Limits, enforce bool) error {
	if v := l.Minimum; v != 0 && (v < 0 || v > maxMinimum || v&(v-1) != 0) {
		return invalid(storage.Minimum, v, "a power of two from 1 to 65536")
	}
	if v := l.Preferred; v != 0 && (v < minPreferred || v > maxPreferred || v&(v-1) != 0) {
		return invalid(storage.Preferred, v, "a power of two from 512 to 2097152")
	}
	if enforce && l.Minimum != 0 && l.Minimum < below.Minimum {
		return invalid(storage.Minimum, l.Minimum, fmt.Sprintf("at least the node's own, %d", below.Minimum))
	}
	for _, which := range []storage.Limit{storage.MaxData, storage.MaxTrim, storage.MaxZero, storage.MaxCache} {
		v, most := l.Of(which), int64(maxRequest)
		if which == storage.MaxData {
			most = maxData
		}
		if v < 0 || v > most {
			return invalid(which, v, fmt.Sprintf("from 1 to %d", most))
		}
		if enforce && v > below.Of(which) {
			return invalid(which, v, fmt.Sprintf("at most the node's own, %d", below.Of(which)))
		}
	}
	return nil
}

// combine is l with what is missing made of below, which is complete. Only what
// is enforced must be possible there.
func combine(l, below storage.Limits, enforce bool) (storage.Limits, error) {
	preferred := l.Preferred
	if l.Minimum == 0 {
		l.Minimum = below.Minimum
	}
	least := max(minPreferred, l.Minimum)
	if preferred != 0 && preferred < least {
		return l, invalid(storage.Preferred, preferred, fmt.Sprintf("at least minimum, %d", l.Minimum))
	}
	least = max(least, preferred)
	switch {
	case l.MaxData != 0:
		if l.MaxData < least || l.MaxData&(l.Minimum-1) != 0 {
			return l, misfit(storage.MaxData, l.MaxData, l.Minimum, least)
		}
	case least <= below.MaxData || !enforce:
		l.MaxData = max(below.MaxData&^(l.Minimum-1), least)
	case preferred == least:
		return l, invalid(storage.Preferred, preferred, fmt.Sprintf("at most the node's max_data, %d", below.MaxData))
	default:
		return l, invalid(storage.Minimum, l.Minimum, fmt.Sprintf("at most the node's max_data, %d", below.MaxData))
	}
	if preferred == 0 {
		l.Preferred = max(least, min(below.Preferred, floor(l.MaxData)))
	}
	for _, longest := range []struct {
		which storage.Limit
		value *int64
	}{{storage.MaxTrim, &l.MaxTrim}, {storage.MaxZero, &l.MaxZero}, {storage.MaxCache, &l.MaxCache}} {
		v := longest.value
		if *v == 0 {
			*v = max(below.Of(longest.which)&^(l.Minimum-1), l.MaxData)
		}
		if *v < l.MaxData || *v&(l.Minimum-1) != 0 {
			return l, misfit(longest.which, *v, l.Minimum, l.MaxData)
		}
	}
	return l, nil
}

func misfit(which storage.Limit, v, minimum, least int64) error {
	return invalid(which, v, fmt.Sprintf("a multiple of minimum, %d, and at least %d", minimum, least))
}

func invalid(which storage.Limit, v int64, want string) error {
	return &storage.InvalidError{Field: which.String(), Detail: fmt.Sprintf("is %d, must be %s", v, want)}
}

// floor is the largest power of two up to n, which is positive.
func floor(n int64) int64 { return 1 << (bits.Len64(uint64(n)) - 1) }
