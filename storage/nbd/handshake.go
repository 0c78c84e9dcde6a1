package nbd

import (
	"fmt"
	"net"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/nbd/wire"
)

// mostReplies bounds what a server may answer an option with.
const mostReplies = 256

// A handshake is the negotiation on one connection. It reads no byte further than
// the messages go, so that nothing that was sent in plain text is taken for what
// comes under TLS.
type handshake struct {
	c       net.Conn
	name    string // of the export
	buf     []byte
	padded  bool // the answer to OptExportName is
	session session
}

// greet exchanges the first messages.
func (h *handshake) greet() error {
	p, err := h.read(wire.GreetingSize)
	if err != nil {
		return err
	}
	flags, err := wire.ParseGreeting(p)
	if err != nil {
		return err
	}
	if flags&wire.FlagFixedNewstyle == 0 {
		return fmt.Errorf("%w: a server that does not speak fixed newstyle", storage.ErrUnsupported)
	}
	h.padded = flags&wire.FlagNoZeroes == 0
	flags &= wire.FlagFixedNewstyle | wire.FlagNoZeroes
	_, err = h.c.Write(wire.AppendClientFlags(nil, uint32(flags)))
	return err
}

// startTLS asks for TLS, which begins with what is read next.
func (h *handshake) startTLS() error {
	refused, err := h.option(wire.OptStartTLS, nil, nil)
	if err == nil && refused != 0 {
		h.abort()
		err = fmt.Errorf("%w: TLS is required: %w", storage.ErrRefused, optionError(wire.OptStartTLS, refused))
	}
	return err
}

// negotiate asks for everything that the server can do, and for the export.
func (h *handshake) negotiate() error {
	s := &h.session
	refused, err := h.option(wire.OptExtendedHeaders, nil, nil)
	if err == nil && refused != 0 {
		refused, err = h.option(wire.OptStructuredReply, nil, nil)
		s.structured = refused == 0
	} else {
		s.extended, s.structured = true, true
	}
	if err == nil && s.structured {
		err = h.metaContext()
	}
	if err != nil {
		return err
	}
	refused, err = h.goExport()
	switch {
	case err != nil:
		return err
	case refused == wire.RepErrUnsup && !s.extended:
		return h.exportName()
	case refused != 0:
		h.abort()
		return optionError(wire.OptGo, refused)
	}
	return nil
}

// metaContext asks for base:allocation, which the server need not have.
func (h *handshake) metaContext() error {
	m := wire.MetaRequest{Name: h.name, Queries: []string{wire.BaseAllocation}}
	refused, err := h.option(wire.OptSetMetaContext, wire.AppendMeta(nil, &m), func(r wire.OptionReply, p []byte) error {
		if r != wire.RepMetaContext {
			return protocolError("reply %d to a question for contexts", r)
		}
		id, name, err := wire.ParseMetaContext(p)
		if err == nil && (name != wire.BaseAllocation || h.session.mapped) {
			err = protocolError("a context that was not asked for")
		}
		h.session.context, h.session.mapped = id, true
		return err
	})
	h.session.mapped = h.session.mapped && refused == 0
	return err
}

// goExport asks for the export, and begins with it.
func (h *handshake) goExport() (refused wire.OptionReply, err error) {
	g := wire.GoRequest{Name: h.name, Infos: []wire.Info{wire.InfoBlockSize}}
	var info wire.ExportInfo
	told := false
	refused, err = h.option(wire.OptGo, wire.AppendGo(nil, &g), func(r wire.OptionReply, p []byte) error {
		if r != wire.RepInfo {
			return protocolError("reply %d to a question for an export", r)
		}
		kind, err := wire.ParseInfo(p, &info)
		told = told || kind == wire.InfoExport
		return err
	})
	switch {
	case err != nil || refused != 0:
	case !told:
		err = protocolError("an export without a size")
	default:
		h.session.export, err = newExport(&info)
	}
	return refused, err
}

// exportName is how servers are asked that do not know of goExport. They close the
// connection where there is no such export.
func (h *handshake) exportName() error {
	if _, err := h.c.Write(wire.AppendOption(nil, wire.OptExportName, []byte(h.name))); err != nil {
		return err
	}
	n := wire.ExportSize
	if h.padded {
		n += wire.ExportPadding
	}
	p, err := h.read(n)
	if err != nil {
		return err
	}
	info := wire.ParseExport(p)
	h.session.export, err = newExport(&info)
	return err
}

// option sends an option, and hands over what is answered before the end. The
// refusal is 0 if there was none.
func (h *handshake) option(o wire.Option, data []byte, each func(wire.OptionReply, []byte) error) (refused wire.OptionReply, err error) {
	if _, err := h.c.Write(wire.AppendOption(nil, o, data)); err != nil {
		return 0, err
	}
	for range mostReplies {
		p, err := h.read(wire.OptionReplySize)
		if err != nil {
			return 0, err
		}
		r, err := wire.ParseOptionReply(p, o)
		if err != nil {
			return 0, err
		}
		if p, err = h.read(int(r.Length)); err != nil {
			return 0, err
		}
		switch {
		case r.Reply.IsError():
			return r.Reply, nil
		case r.Reply == wire.RepAck:
			return 0, nil
		case each == nil:
			return 0, protocolError("reply %d to option %d", r.Reply, o)
		}
		if err := each(r.Reply, p); err != nil {
			return 0, err
		}
	}
	return 0, protocolError("more than %d replies to option %d", mostReplies, o)
}

// abort takes leave of a server that will not do.
func (h *handshake) abort() { _, _ = h.c.Write(wire.AppendOption(nil, wire.OptAbort, nil)) }
