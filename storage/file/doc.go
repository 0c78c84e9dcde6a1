// Package file is the protocol node for regular files and block devices of
// Linux.
//
// It guarantees that a name given to a [Dir] opens nothing outside it, that
// opening never blocks on a FIFO and touches no other kind of file, and that
// QEMU's image locks are honoured in both directions. Its error texts hold no
// path of the host. It does not guarantee that the content stays as it is: who
// ignores the locks can write, and what [File.Extents] says is as of the call.
package file
