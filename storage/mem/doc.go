// Package mem is the protocol node for a file in memory, for benchmarks, tests
// and scratch images.
//
// It is sparse: only pages that hold something else than zeros were ever
// allocated, so that a file of 2 EiB costs nothing until it is written to. It
// guarantees that its pages never take more than [Options].MaxBytes: a write
// that would need more fails with [storage.ErrNoSpace] and changes nothing.
// Reads go on beside each other; a change waits for them, and they for it.
//
// It does not guarantee that anything outlives the process, or the file's
// Close: Flush has nothing to do.
package mem
