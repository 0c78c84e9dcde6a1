//go:build race

package swab_test

// racing: the race detector is on. It makes pools forget at random.
const racing = true
