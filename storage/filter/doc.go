// Package filter holds what the filters in the folders below it share. A filter
// is a node over a node: it changes what is asked of the one below, or what is
// told of it, and is a [storage.File] and [storage.Writer] itself, so that
// another can stand on it.
//
// A filter names each part of a [Filter] that it passes on by embedding it
// ([Sizes], [Reads], [Maps], [Limits], [Changes] or [Forgets], [Starts],
// [Flushes], [Closes]), and has methods for what it changes. A part that it forgets is
// missing: it does not compile. Filters that treat all operations alike are an
// [Interposer] each.
//
// The node below belongs to the filter, which closes it: closing the top of a
// graph closes all of it. Every node of a graph is asked through a
// [storage.Node], which enforces its limits.
package filter
