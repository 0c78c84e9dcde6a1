// Package file is the protocol node for regular files and block devices of
// Linux.
//
// It guarantees that a name given to a [Dir] opens, makes and removes nothing
// outside it, that opening never blocks on a FIFO and touches no other kind of
// file, and that QEMU's image locks are honoured in both directions. A file is
// opened for reading, and can become writable while it is in use
// ([File.StartWriting]); a new one gets its name only when it is complete and
// durable ([Draft]), and never takes another's; and what a scratch file
// ([OpenScratch]) empties was one before. One that is opened as direct
// ([Options]) keeps its data out of the page cache, but for the part of a block
// that it may end with. Error texts hold no path of the host.
//
// It does not guarantee that the content stays as it is: who ignores the locks
// can write, and what [File.Extents] says is as of the call. What was written is
// durable after [File.Flush] alone, not after [File.Close].
package file
