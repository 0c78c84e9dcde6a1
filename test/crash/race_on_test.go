//go:build race

package crash_test

// slowness is how much longer everything takes under the race detector, about.
// So much less is tried.
const slowness = 6
