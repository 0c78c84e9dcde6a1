// Package cow is the filter that keeps writes away from the node below it: they
// go to an overlay, a scratch file that is discarded when the filter is closed.
//
// It guarantees that the node below is never changed, nor made ready for being
// written to: many filters may stand on one node. A block comes into the
// overlay whole, and is seen there only once all of it has been written; so a
// write that fails, or is cancelled, shows each byte old or new and never
// uncovers what was elsewhere. What was cut off by a smaller size reads as zeros
// when the size grows again.
//
// It does not guarantee that anything outlasts the filter: nothing in the
// overlay says which blocks it holds, and a flush does nothing. It takes the
// node below to stay as it is: what changes there shows in blocks that have not
// been written here. A read that overlaps a write at the same time may see a
// part of it.
package cow
