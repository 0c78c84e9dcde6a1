package nbd

import (
	"errors"
	"slices"

	"github.com/extentd/extentd/auth"
	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/nbd/wire"
)

// listed is how many images are asked for at a time.
const listed = 100

// list tells of the images that can be opened.
func (n *negotiation) list() {
	const o = wire.OptList
	ctx := n.c.s.ctx
	cursor := ""
	for {
		page, err := n.c.s.svc.List(ctx, cursor, listed, n.shows)
		if err != nil {
			n.refuse(o, err)
			return
		}
		for i := range page.Entries {
			e := &page.Entries[i]
			if e.Err != nil {
				n.c.log.Debug("nbd: not listed", "image", e.Name, "error", e.Err)
				continue
			}
			n.answer(o, wire.RepServer, wire.AppendServer(nil, e.Name, n.describe(e.Name, e.Format)))
		}
		if cursor = page.Next; cursor == "" {
			break
		}
		if err := n.flush(); err != nil { // as does whatever comes next
			return
		}
		if n.allow() != nil {
			return
		}
	}
	n.answer(o, wire.RepAck, nil)
}

// shows reports whether the client may know that an image is there: an export is
// there to be read.
func (n *negotiation) shows(name string) bool { return n.c.caller.May(auth.Read, name) }

func (n *negotiation) describe(name, format string) string {
	text := plain(n.c.s.opt.Description(name, format))
	return text[:min(len(text), wire.MaxString)]
}

// refuse adds the answer to an option that failed for what an image is.
func (n *negotiation) refuse(o wire.Option, err error) {
	if errors.Is(err, storage.ErrNotFound) {
		n.fail(o, wire.RepErrUnknown, "there is no such export")
		return
	}
	errno := errnoOf(err, wire.CmdRead)
	r := wire.RepErrUnknown
	switch errno {
	case wire.ESHUTDOWN:
		r = wire.RepErrShutdown
	case wire.EIO, wire.ENOMEM:
		n.c.log.Error("nbd: an image cannot be opened", "error", err)
	case wire.EPERM:
		r = wire.RepErrPolicy
	}
	n.fail(o, r, textOf(err, errno))
}

// resolve is the name of the image that a client means, and may read. The empty
// name is that of the only one.
func (n *negotiation) resolve(name string) (string, error) {
	if name != "" && !n.shows(name) {
		n.c.auditRefusal(name)
		return "", storage.ErrNotFound
	}
	if name != "" {
		return name, nil
	}
	page, err := n.c.s.svc.List(n.c.s.ctx, "", 2, n.shows)
	if err != nil {
		return "", err
	}
	if len(page.Entries) != 1 || page.Next != "" {
		return "", storage.ErrNotFound
	}
	return page.Entries[0].Name, nil
}

// open opens the export that the client means.
func (n *negotiation) open(name string) (*export, string, error) {
	name, err := n.resolve(name)
	if err != nil {
		return nil, "", err
	}
	return openExport(n.c, name)
}

// flags are what an export can do, as agreed on.
func (n *negotiation) flags(e *export) wire.Transmission {
	f := wire.HasFlags | wire.SendFlush | wire.SendFUA | wire.SendCache | wire.CanMultiConn
	if e.readOnly {
		f |= wire.ReadOnly
	} else {
		f |= wire.SendTrim | wire.SendWriteZeroes | wire.SendFastZero
	}
	if n.structured {
		f |= wire.SendDF
	}
	if n.extended && n.of == e.name && n.contexts.set != 0 {
		f |= wire.BlockStatusPayload
	}
	return f
}

// info serves OptInfo and OptGo.
func (n *negotiation) info(o wire.Option, data []byte) (done bool) {
	g, ok := wire.ParseGo(data)
	if !ok {
		n.fail(o, wire.RepErrInvalid, "malformed")
		return false
	}
	e, format, err := n.open(g.Name)
	if err != nil {
		n.refuse(o, err)
		return false
	}
	n.answer(o, wire.RepInfo, wire.AppendInfoExport(nil, e.size, n.flags(e)))
	n.answer(o, wire.RepInfo, wire.AppendInfoBlockSize(nil, uint32(e.minimum), uint32(e.preferred), uint32(e.maxData)))
	if slices.Contains(g.Infos, wire.InfoName) {
		n.answer(o, wire.RepInfo, wire.AppendInfoText(nil, wire.InfoName, e.name))
	}
	if slices.Contains(g.Infos, wire.InfoDescription) {
		n.answer(o, wire.RepInfo, wire.AppendInfoText(nil, wire.InfoDescription, n.describe(e.name, format)))
	}
	n.answer(o, wire.RepAck, nil)
	if o == wire.OptInfo {
		e.release()
		return false
	}
	n.export = e
	return true
}
