// Package http is the protocol node for files that a web server has: they are
// read, with range requests, and never written to.
//
// It guarantees that all bytes and extents of a [File] are of one version of the
// remote file, the one that was opened, as far as the server's validator (a
// strong ETag, or a Last-Modified) tells versions apart: whatever else arrives is
// an error, [storage.ErrChanged] where the file is another by now. A body that is
// shorter or longer than what was asked for, or encoded, is an error. Addresses
// that are not public are refused when they are dialled, whatever name or redirect
// led there, unless the operator allows them; headers and credentials are sent to
// no other host; no proxy is used. Error texts hold the host and the last segment
// of the path, never a query, a password or a header's value.
//
// It does not guarantee more than the validator does: a Last-Modified does not see
// two changes within a second, and a server that rewrites a file in place while it
// sends it may mix both in one answer. Nothing is tried again here, which is a
// filter's task, but for a remembered redirect that is no longer good, and what
// net/http repeats because no server has seen it.
package http
