//go:build !race

package crash_test

const slowness = 1
