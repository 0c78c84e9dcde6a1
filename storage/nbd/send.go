package nbd

import (
	"time"

	"github.com/extentd/extentd/storage/nbd/wire"
)

// send sends what is queued, as much of it at a time as is there, until the
// connection has died or was drained. Payloads are copied on their way: so the
// caller can have his buffer back at any time, and small requests share a system
// call.
func (c *conn) send() error {
	buf := make([]byte, 0, ioSize)
	var err error
	for {
		r, head, over := c.next()
		switch {
		case r != nil:
			if buf, err = c.pack(buf, r, head); err != nil {
				return err
			}
			continue
		case len(buf) > 0:
			if err := c.write(buf); err != nil {
				return err
			}
			buf = buf[:0]
			continue
		case over != nil:
			return c.disconnect(over)
		}
		select {
		case <-c.work:
		case <-c.dead:
			return nil
		}
	}
}

// next is the request to send now, if any, or why the connection is over. What the
// sender needs of it but its payload is a copy.
func (c *conn) next() (r *request, head wire.Request, over error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.queue) > 0 {
		r = c.queue[0]
		c.queue = append(c.queue[:0], c.queue[1:]...)
		r.waiting = false
		return r, r.Request, nil
	}
	if len(c.pending) == 0 {
		return nil, head, c.draining
	}
	return nil, head, nil
}

// pack appends a request to what is to be written, and writes what is full.
func (c *conn) pack(buf []byte, r *request, head wire.Request) ([]byte, error) {
	size := wire.RequestSize
	if c.extended {
		size = wire.ExtRequestSize
	}
	if cap(buf)-len(buf) < size {
		if err := c.write(buf); err != nil {
			return buf, err
		}
		buf = buf[:0]
	}
	if c.extended && head.Command == wire.CmdWrite {
		head.Flags |= wire.FlagPayloadLen
	}
	begin := len(buf)
	buf = buf[:begin+size]
	wire.PutRequest(buf[begin:], &head, c.extended)
	left := head.Payload(c.extended)
	for left > 0 {
		if len(buf) == cap(buf) {
			if err := c.write(buf); err != nil {
				return buf, err
			}
			buf = buf[:0]
		}
		n := r.take(buf[len(buf):min(cap(buf), len(buf)+int(left))])
		if n == 0 { // it has died
			return buf, errDead
		}
		buf, left = buf[:len(buf)+n], left-uint64(n)
	}
	return buf, nil
}

func (c *conn) write(p []byte) error {
	if err := c.nc.SetWriteDeadline(time.Now().Add(c.timeout)); err != nil {
		return err
	}
	_, err := c.nc.Write(p)
	return err
}

// disconnect takes leave.
func (c *conn) disconnect(why error) error {
	p := make([]byte, wire.ExtRequestSize)
	if !c.extended {
		p = p[:wire.RequestSize]
	}
	wire.PutRequest(p, &wire.Request{Command: wire.CmdDisc}, c.extended)
	_ = c.nc.SetWriteDeadline(time.Now().Add(time.Second))
	_, _ = c.nc.Write(p) // the server will notice anyway
	return why
}
