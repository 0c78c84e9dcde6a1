// Package nbd is the protocol node for exports of NBD servers: qemu-nbd, nbdkit,
// nbd-server, another extentd.
//
// It guarantees that a read returns what the server sent for every byte of it, each
// exactly once, or an error: a reply that overlaps, leaves gaps, lies outside of what
// was asked for, or answers nothing, breaks the protocol, and the connection with it.
// A caller whose context ends returns at once, and his buffer is not touched any
// more, neither read nor written; a change that he has given up may still be done,
// and later changes of the same bytes wait until it is over. The size, the flags and the block sizes of an
// export are those that it had when it was opened: a connection that finds others
// fails the file with [storage.ErrChanged] for good.
//
// # Lost connections
//
// A connection that is lost is made again, with growing pauses, when there is
// something to do. Reads and questions for extents are repeated on another one, a
// bounded number of times. Changes (writes, zeroes, trims and flushes) are repeated
// only if it is certain that they are not done and never will be: either nothing of
// the request was handed to the kernel, or the server answered that it is shutting
// down. Every other change fails with [ErrLost]. It may have been done, in part or
// wholly, and a server that has not noticed the loss may still do it: no more is
// known. Repeating it here could undo what somebody wrote in between.
//
// When a connection was lost on which something had been changed since the last
// flush that succeeded, the next flush fails with [ErrLost] as well, once: the
// server may be another one by now, which has not seen those changes.
//
// # What it does not guarantee
//
// The protocol has no versions of an export's content: a server that comes back with
// other bytes of the same size is not noticed. There is no guard against private
// addresses: who names the server is the operator. And a server without flushes is
// taken at its word: it is assumed to need none.
package nbd
