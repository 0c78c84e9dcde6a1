// Package storagetest holds what the tests of mappers and files share: the
// conformance suite that every one of them passes, and an in-memory file with
// holes and faults.
//
// The suite tests what the contracts of package storage promise, from the
// outside. It does not test what a format or a file system adds to them: exact
// boundaries of holes, locks, damaged metadata.
package storagetest
