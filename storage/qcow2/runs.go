package qcow2

import "slices"

// A run is so many clusters from one on, by number.
type run struct{ start, count int64 }

func (r run) end() int64 { return r.start + r.count }

// runs are a set of clusters: sorted runs that neither overlap nor touch. The
// zero value is empty.
type runs struct{ list []run }

// search is the index of the first run that ends after the cluster.
func (s *runs) search(cluster int64) int {
	lo, hi := 0, len(s.list)
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		if s.list[mid].end() > cluster {
			hi = mid
		} else {
			lo = mid + 1
		}
	}
	return lo
}

// end is where the run that holds the cluster ends, 0 where there is none.
func (s *runs) end(cluster int64) int64 {
	if k := s.search(cluster); k < len(s.list) && s.list[k].start <= cluster {
		return s.list[k].end()
	}
	return 0
}

// contains reports whether all of r is in the set.
func (s *runs) contains(r run) bool { return r.end() <= s.end(r.start) }

// overlaps reports whether any of r is in the set.
func (s *runs) overlaps(r run) bool {
	k := s.search(r.start)
	return k < len(s.list) && s.list[k].start < r.end()
}

// add puts r into the set, which must hold nothing of it.
func (s *runs) add(r run) {
	k := s.search(r.start)
	before := k > 0 && s.list[k-1].end() == r.start
	after := k < len(s.list) && s.list[k].start == r.end()
	switch {
	case before && after:
		s.list[k-1].count += r.count + s.list[k].count
		s.list = slices.Delete(s.list, k, k+1)
	case before:
		s.list[k-1].count += r.count
	case after:
		s.list[k].start -= r.count
		s.list[k].count += r.count
	default:
		s.list = slices.Insert(s.list, k, r)
	}
}

// remove takes out of the set what it holds of r.
func (s *runs) remove(r run) {
	for r.count > 0 {
		k := s.search(r.start)
		if k == len(s.list) || s.list[k].start >= r.end() {
			return
		}
		old := s.list[k]
		from, to := max(old.start, r.start), min(old.end(), r.end())
		switch {
		case from == old.start && to == old.end():
			s.list = slices.Delete(s.list, k, k+1)
		case from == old.start:
			s.list[k] = run{to, old.end() - to}
		case to == old.end():
			s.list[k].count = from - old.start
		default:
			s.list[k].count = from - old.start
			s.list = slices.Insert(s.list, k+1, run{to, old.end() - to})
		}
		r = run{to, r.end() - to}
	}
}
