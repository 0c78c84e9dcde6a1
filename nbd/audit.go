package nbd

import (
	"time"

	"github.com/extentd/extentd/audit"
	"github.com/extentd/extentd/auth"
	"github.com/extentd/extentd/storage/nbd/wire"
)

// auditRefusal writes down that the client was not let to an image, "" for any:
// once for each in a row.
func (c *conn) auditRefusal(image string) {
	if c.denied == image && image != "" {
		return
	}
	c.denied = image
	r := c.record(image, time.Now())
	r.Result = audit.Refused
	c.s.opt.Audit.Write(&r)
}

// auditChanges writes down what the connection has changed of its export, or
// tried to.
func (c *conn) auditChanges(image string, began time.Time) {
	r := c.record(image, began)
	r.NBD = &audit.NBD{}
	var done, failed int64
	for _, of := range []struct {
		command  wire.Command
		n, bytes *int64
	}{
		{wire.CmdWrite, &r.NBD.Writes, &r.NBD.WrittenBytes},
		{wire.CmdWriteZeroes, &r.NBD.Zeros, &r.NBD.ZeroedBytes},
		{wire.CmdTrim, &r.NBD.Trims, &r.NBD.TrimmedBytes},
	} {
		have := &c.counts[of.command]
		wrong := int64(have.errors.Load())
		*of.n, *of.bytes = int64(have.requests.Load())-wrong, int64(have.bytes.Load())
		done += *of.n
		failed += wrong
	}
	if done+failed == 0 {
		return
	}
	r.NBD.Errors = failed
	switch {
	case failed == 0:
		r.Result = audit.OK
	case c.readOnly:
		r.Result = audit.Refused
	default:
		r.Result = audit.Failed
	}
	c.s.opt.Audit.Write(&r)
}

func (c *conn) record(image string, began time.Time) audit.Record {
	return audit.Record{
		Time: began.UTC(), Protocol: "nbd", Caller: callerOf(c.caller), Remote: c.nc.RemoteAddr().String(), Image: image,
		Seconds: time.Since(began).Seconds(),
	}
}

func callerOf(c *auth.Caller) audit.Caller {
	if c == nil {
		return audit.Caller{Kind: "unknown"}
	}
	return audit.Caller{Kind: string(c.Kind), Name: c.Name, Subject: c.Subject, Ticket: c.Ticket}
}
