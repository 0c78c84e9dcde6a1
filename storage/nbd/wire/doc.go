// Package wire is the NBD protocol's messages as bytes, for both sides: the front
// end and the client node. It follows doc/proto.md of the NBD project; constants
// carry its names.
//
// Everything that is read comes from a stranger: lengths are checked against
// bounds before anything is allocated or read, and what breaks the protocol fails
// with [ErrProtocol]. Nothing here knows of images or connections.
package wire
