// Package storage is the vocabulary that format drivers, protocol nodes and
// their callers share: mappings and their status, extent lists, limits, nodes
// and errors.
//
// A format driver is a [Mapper]: it knows which guest blocks live where, and
// never sees a read or a write. A protocol node is a [File]: it knows bytes
// and nothing of formats. Callers compose I/O from the two (package block).
//
// Offsets and lengths are bytes in an int64 and never negative. The largest
// size is [MaxSize]; every range is checked with [CheckRange] before it is
// added up, so that sums of offset and length do not overflow.
//
// The package imports the standard library only.
package storage
