// Package cache is the filter that keeps blocks of a slow node in a local file.
//
// It guarantees that a read never gives bytes that were overwritten before it
// began, if they were overwritten through the filter: writes go to the node, and
// the blocks that they touch are dropped both before and after, as are those
// that are being fetched meanwhile. It guarantees that a cache that is full or
// broken fails no read: the node is asked then. Several who miss one block fetch
// it once.
//
// It does not guarantee that it notices what others change in the node. Nothing
// outlasts the filter: which blocks the file holds is known in memory alone, so
// after a restart it begins anew.
package cache
