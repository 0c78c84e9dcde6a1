// Package state keeps what must survive a restart: one small database in one
// directory, for everybody who has something to keep. Each has buckets of its
// own.
//
// It guarantees that a change is there wholly or not at all, and durable once it
// has been reported as made; that nothing is made on disk before there is
// something to keep, and that nobody but its user may read what is; and that one
// process at a time has it. It does not know what is kept, nor does it make it
// smaller: who keeps something bounds it.
package state
