//go:build race

package test

// detector: the tests run under the race detector, and so does what they test
// with parallel clients.
const detector = true
