// Package storagetest holds what the tests of mappers and files share: the
// conformance suites that every one of them passes, an in-memory file with holes
// and faults, and a journal of what is written, from which a crash at any time
// can be played.
//
// The suites test what the contracts of package storage promise, from the
// outside. They do not test what a format or a file system adds to them: exact
// boundaries of holes, locks, damaged metadata. What outlasts a crash is tested
// with a [Journal].
package storagetest
