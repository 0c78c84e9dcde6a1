package nbd

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/extentd/extentd/storage/nbd/wire"
)

// maxSkip is the longest data of an option that is read over, bytes. A client
// that sends more is cut off.
const maxSkip = 1 << 20

// A negotiation is the first phase of a connection. Nothing is read ahead: what
// comes after STARTTLS must not have been sent before it.
type negotiation struct {
	c      *conn
	rw     net.Conn // nc, or TLS over it
	secure bool     // TLS stands
	fixed  bool     // the client speaks fixed newstyle
	short  bool     // the client wants no padding

	structured bool // replies are in chunks
	extended   bool // likewise, with headers for 64 bits
	contexts   contexts
	of         string // the export that contexts are for

	export *export // what was chosen; nil: the client goes
	in     []byte  // of an option
	out    []byte  // of answers to it
}

// goodbye bounds how long the end of TLS may take to send.
const goodbye = time.Second

// release ends TLS, and gives back what was chosen.
func (n *negotiation) release() {
	if t, ok := n.rw.(*tls.Conn); ok {
		_ = n.c.nc.SetWriteDeadline(time.Now().Add(goodbye)) // the connection may be gone
		_ = t.CloseWrite()                                   // likewise
	}
	if n.export != nil {
		n.export.release()
	}
}

// run negotiates until an export has been chosen, or the client goes.
func (n *negotiation) run() error {
	if err := n.allow(); err != nil {
		return err
	}
	const offered = wire.FlagFixedNewstyle | wire.FlagNoZeroes
	n.out = wire.AppendGreeting(n.out[:0], offered)
	if err := n.flush(); err != nil {
		return err
	}
	p, err := n.read(wire.ClientFlagsSize)
	if err != nil {
		return err
	}
	flags, err := wire.ParseClientFlags(p, offered)
	if err != nil {
		return err
	}
	n.fixed, n.short = flags&wire.FlagFixedNewstyle != 0, flags&wire.FlagNoZeroes != 0
	for range wire.MaxOptions {
		done, err := n.option()
		if done || err != nil {
			return err
		}
		if n.secure || !n.c.s.opt.RequireTLS {
			if err := n.allow(); err != nil {
				return err
			}
		}
	}
	return fmt.Errorf("%w: more than %d options", wire.ErrProtocol, wire.MaxOptions)
}

// allow gives the client time for an option.
func (n *negotiation) allow() error {
	if err := n.c.nc.SetDeadline(time.Now().Add(n.c.s.opt.HandshakeTimeout)); err != nil {
		return err
	}
	if n.c.draining.Load() {
		n.c.drain()
	}
	return nil
}

// read reads the next bytes, which are good until it is called again.
func (n *negotiation) read(size int) ([]byte, error) {
	if cap(n.in) < size {
		n.in = make([]byte, size)
	}
	_, err := io.ReadFull(n.rw, n.in[:size])
	return n.in[:size], err
}

// flush sends the answers.
func (n *negotiation) flush() error {
	_, err := n.rw.Write(n.out)
	n.out = n.out[:0]
	return err
}

// answer adds an answer to the option.
func (n *negotiation) answer(o wire.Option, r wire.OptionReply, data []byte) {
	n.out = wire.AppendOptionReply(n.out, o, r, data)
}

// fail adds an answer that is an error.
func (n *negotiation) fail(o wire.Option, r wire.OptionReply, text string) {
	text = plain(text)
	n.answer(o, r, []byte(text[:min(len(text), wire.MaxString)]))
}

// option serves an option. done: the negotiation has ended.
func (n *negotiation) option() (done bool, err error) {
	p, err := n.read(wire.OptionSize)
	if err != nil {
		return false, err
	}
	h, err := wire.ParseOption(p)
	if err != nil {
		return false, err
	}
	data, whole, err := n.data(h.Length)
	if err != nil {
		return false, err
	}
	if h.Option == wire.OptExportName {
		return true, n.exportName(data, whole)
	}
	if !n.fixed {
		return false, fmt.Errorf("%w: option %d of a client without fixed newstyle", wire.ErrProtocol, h.Option)
	}
	done = n.serve(h.Option, data, whole)
	if err := n.flush(); err != nil {
		return false, err
	}
	if h.Option == wire.OptStartTLS && done {
		return false, n.startTLS()
	}
	return done, nil
}

// data reads the data of an option, or reads over it if it is too long.
func (n *negotiation) data(size uint32) (data []byte, whole bool, err error) {
	switch {
	case size <= wire.MaxOption:
		data, err = n.read(int(size))
		return data, true, err
	case size <= maxSkip:
		_, err = io.CopyN(io.Discard, n.rw, int64(size))
		return nil, false, err
	}
	return nil, false, fmt.Errorf("%w: an option of %d bytes", wire.ErrProtocol, size)
}

// serve answers an option. done: it was the last one, or TLS begins.
func (n *negotiation) serve(o wire.Option, data []byte, whole bool) (done bool) {
	switch {
	case o == wire.OptAbort:
		n.answer(o, wire.RepAck, nil)
		return true
	case n.c.draining.Load():
		n.fail(o, wire.RepErrShutdown, "the server is stopping")
	case o == wire.OptStartTLS:
		return n.acceptTLS(data, whole)
	case n.c.s.opt.RequireTLS && !n.secure:
		n.fail(o, wire.RepErrTLSReqd, "TLS is required: send STARTTLS first")
	case !known(o):
		n.fail(o, wire.RepErrUnsup, "unknown option")
	case !whole:
		if o == wire.OptSetMetaContext { // the set is replaced, whatever becomes of it
			n.contexts, n.of = contexts{}, ""
		}
		n.fail(o, wire.RepErrTooBig, "too much data")
	default:
		return n.serveKnown(o, data)
	}
	return false
}

func known(o wire.Option) bool {
	switch o {
	case wire.OptList, wire.OptInfo, wire.OptGo, wire.OptStructuredReply, wire.OptListMetaContext,
		wire.OptSetMetaContext, wire.OptExtendedHeaders:
		return true
	}
	return false
}

func (n *negotiation) serveKnown(o wire.Option, data []byte) (done bool) {
	switch o {
	case wire.OptInfo, wire.OptGo:
		return n.info(o, data)
	case wire.OptListMetaContext, wire.OptSetMetaContext:
		n.metaContext(o, data)
		return false
	}
	if len(data) > 0 {
		n.fail(o, wire.RepErrInvalid, "the option has no data")
		return false
	}
	switch {
	case o == wire.OptList:
		n.list()
		return false
	case o == wire.OptStructuredReply && n.extended:
		n.fail(o, wire.RepErrExtHeaderReqd, "extended headers are agreed on already")
		return false
	case o == wire.OptStructuredReply:
		n.structured = true
	case o == wire.OptExtendedHeaders:
		n.structured, n.extended = true, true
	}
	n.answer(o, wire.RepAck, nil)
	return false
}

// acceptTLS reports whether TLS begins.
func (n *negotiation) acceptTLS(data []byte, whole bool) bool {
	const o = wire.OptStartTLS
	switch {
	case n.secure:
		n.fail(o, wire.RepErrInvalid, "TLS stands already")
	case len(data) > 0 || !whole:
		n.fail(o, wire.RepErrInvalid, "the option has no data")
	case n.c.s.opt.TLS == nil:
		n.fail(o, wire.RepErrPolicy, "this server has no TLS")
	default:
		n.answer(o, wire.RepAck, nil)
		return true
	}
	return false
}

// startTLS forgets what was agreed on without TLS.
func (n *negotiation) startTLS() error {
	t := tls.Server(n.c.nc, n.c.s.opt.TLS)
	if err := t.HandshakeContext(n.c.s.ctx); err != nil {
		return fmt.Errorf("TLS: %w", err)
	}
	if err := n.c.identify(t); err != nil {
		return err
	}
	n.rw, n.secure = t, true
	n.structured, n.extended, n.contexts, n.of = false, false, contexts{}, ""
	return nil
}

var errUnavailable = errors.New("the export is not available")

// exportName serves the oldest way to choose an export. What goes wrong with it
// cannot be told.
func (n *negotiation) exportName(data []byte, whole bool) error {
	switch {
	case n.c.draining.Load(), n.c.s.opt.RequireTLS && !n.secure:
		return errUnavailable
	case !whole || !wire.ValidString(data) || n.extended:
		return fmt.Errorf("%w: export name of %d bytes", wire.ErrProtocol, len(data))
	}
	e, _, err := n.open(string(data))
	if err != nil {
		return err
	}
	n.export = e
	n.out = wire.AppendExport(n.out[:0], e.size, n.flags(e), !n.short)
	return n.flush()
}
