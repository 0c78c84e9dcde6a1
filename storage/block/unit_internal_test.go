package block

import "testing"

// A unit that was made before its mapping went is not kept, and one that was
// kept is dropped with its mapping, whichever way the range is gone through.
func TestUnitsGo(t *testing.T) {
	const size = 512
	for _, n := range []int64{size, 1 << 30} {
		c := newUnitCache(8 * size)
		put := func(off int64, gone uint64) {
			u, hit := c.get(unitKey{0, off}, 7, size)
			if hit {
				t.Fatalf("there is a unit at %d", off)
			}
			c.add(u, gone)
			c.release(u)
		}
		has := func(off, at int64) bool {
			u, hit := c.get(unitKey{0, off}, at, size)
			c.release(u)
			return hit
		}
		gone := c.gone.Load()
		put(0, gone)
		put(size, gone)
		put(2*size, gone)
		if !has(size, 7) || has(size, 8) {
			t.Error("a unit is found where it was not packed, or not where it was")
		}
		c.drop(size+100, n-100, size)
		if !has(0, 7) || has(size, 7) || has(2*size, 7) != (n == size) {
			t.Errorf("drop of %d leaves %v, %v, %v", n, has(0, 7), has(size, 7), has(2*size, 7))
		}
		put(size, gone)
		if has(size, 7) {
			t.Error("a unit of an old mapping was kept")
		}
		if used := int64(len(c.units)) * size; c.used != used {
			t.Errorf("%d bytes used, not %d", c.used, used)
		}
	}
}
