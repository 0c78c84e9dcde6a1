//go:build !race

package blocksize_test

// racing: the race detector is on. It makes pools forget at random.
const racing = false
