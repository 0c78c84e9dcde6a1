//go:build race

package file_test

// racing: the race detector is on. It makes pools forget at random.
const racing = true
