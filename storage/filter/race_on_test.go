//go:build race

package filter_test

// racing: the race detector is on. It makes pools forget at random.
const racing = true
