package test

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/extentd/extentd/storage/nbd/wire"
)

// knowingTime is how long after SIGTERM a connection that was used before is
// certain to be still served. The server has ten times that.
const knowingTime = 50 * time.Millisecond

// A restartWorker sends requests until it cannot connect anymore.
type restartWorker struct {
	t      *testing.T
	strip  *strip
	run    func(*restartWorker)
	secure *tls.Config // nil without TLS

	s       *server // with a client of its own
	stopped *atomic.Int64
	delay   time.Duration
	before  int64        // what was done before this round
	refused atomic.Int64 // no connection
	late    atomic.Int64 // the connection was closed under a request that came too late
}

// begin prepares for a server.
func (w *restartWorker) begin(s *server, stopped *atomic.Int64, delay time.Duration) {
	own := *s
	w.s, w.stopped, w.delay, w.before = &own, stopped, delay, w.strip.acked.Load()
	w.speak(&http.Transport{DisableCompression: true})
}

// did is how many requests were done in this round.
func (w *restartWorker) did() int64 { return w.strip.acked.Load() - w.before }

func (w *restartWorker) speak(transport *http.Transport) {
	transport.TLSClientConfig = w.secure.Clone() // HTTP/2 changes it
	w.s.client = &http.Client{Transport: &witness{Transport: transport, w: w}}
}

// ended reports whether a worker is at its end: with an error that may be, since
// the server stops.
func (w *restartWorker) ended(err error) bool {
	var refused *refusal
	if errors.As(err, &refused) {
		w.t.Errorf("a request was refused: %v", err)
	}
	return err != nil
}

// write writes over connections that are used again.
func (w *restartWorker) write() {
	for {
		slot, off, p := w.strip.next()
		err := w.strip.try(slot, func() error { return w.s.put(w.strip.file, off, p, w.strip.stamp%3 == 0) })
		if w.ended(err) {
			return
		}
	}
}

// writeAnew writes over a new connection each time.
func (w *restartWorker) writeAnew() {
	w.speak(&http.Transport{DisableCompression: true, DisableKeepAlives: true})
	w.write()
}

// writeHTTP2 does so over HTTP/2, which tells what was served: nothing that was
// sent in time is lost.
func (w *restartWorker) writeHTTP2() {
	transport := &http.Transport{DisableCompression: true, Protocols: new(http.Protocols)}
	transport.Protocols.SetHTTP2(true)
	transport.Protocols.SetUnencryptedHTTP2(true)
	w.speak(transport)
	w.write()
	transport.CloseIdleConnections()
}

// publish allocates, fills and maps.
func (w *restartWorker) publish() {
	for {
		slot, off, p := w.strip.next()
		g, err := w.s.allocate(w.strip.file, object{"length": slotSize})
		if err == nil {
			err = w.s.fill(w.strip.file, g.ID, 0, p)
		}
		if err == nil {
			err = w.strip.try(slot, func() error {
				return w.s.update(w.strip.file, []object{target(off, slotSize, "data", "allocation", g.ID, "allocation_offset", 0)})
			})
		}
		if err == nil {
			err = w.s.giveBack(w.strip.file, g.ID)
		}
		if w.ended(err) {
			return
		}
	}
}

// read reads what nobody writes to.
func (w *restartWorker) read() {
	for {
		_, off, _ := w.strip.next()
		p, err := w.s.read(w.strip.file, off, slotSize)
		if w.ended(err) {
			return
		}
		if firstDifference(p, make([]byte, slotSize)) >= 0 {
			w.t.Errorf("the slot at %d is not empty", off)
		}
		w.strip.acked.Add(1)
	}
}

func (w *restartWorker) readAnew() {
	w.speak(&http.Transport{DisableCompression: true, DisableKeepAlives: true})
	w.read()
}

// writeNBD writes over NBD, where requests are refused once the server stops.
func (w *restartWorker) writeNBD() {
	c, err := tryDialNBD(w.s.nbd[0])
	if err == nil {
		defer c.conn.Close()
		err = c.open(w.strip.file, true)
	}
	if err != nil {
		w.t.Error(err)
		return
	}
	for {
		slot, off, p := w.strip.next()
		known := w.strip.may[slot]
		err := w.strip.try(slot, func() error {
			if err := c.send(wire.CmdWrite, wire.Flags(w.strip.stamp%2)*wire.FlagFUA, off, 0, p); err != nil {
				return err
			}
			r, err := c.receive()
			if err == nil && r.errno != 0 {
				return nbdRefusal(r.errno)
			}
			return err
		})
		switch {
		case err == nil:
			continue
		case errors.Is(err, nbdRefusal(wire.ESHUTDOWN)):
			w.strip.may[slot] = known // it says that it was not done
		case ended(err) || errors.As(err, new(*net.OpError)):
			w.late.Add(1)
		default:
			w.t.Errorf("NBD: %v", err)
		}
		if w.stopped.Load() == 0 {
			w.t.Errorf("NBD, before the server was told to stop: %v", err)
		}
		return
	}
}

// An nbdRefusal is the error that a request was answered with.
type nbdRefusal wire.Errno

func (r nbdRefusal) Error() string { return fmt.Sprintf("NBD error %d", uint32(r)) }

// A witness sees how each request ends, and complains of one that should have been
// answered.
type witness struct {
	*http.Transport
	w *restartWorker
}

func (v *witness) RoundTrip(req *http.Request) (*http.Response, error) {
	var mu sync.Mutex
	var got, reused bool
	sent := time.Time{}
	trace := &httptrace.ClientTrace{
		GotConn: func(info httptrace.GotConnInfo) {
			mu.Lock()
			defer mu.Unlock()
			got, reused, sent = true, info.Reused, time.Time{}
		},
		WroteRequest: func(httptrace.WroteRequestInfo) {
			mu.Lock()
			defer mu.Unlock()
			sent = time.Now()
		},
	}
	resp, err := v.Transport.RoundTrip(req.WithContext(httptrace.WithClientTrace(req.Context(), trace)))
	if err == nil {
		resp.Body = &wholeBody{resp.Body, v.w.t, req}
		return resp, nil
	}
	mu.Lock()
	defer mu.Unlock()
	if sent.IsZero() {
		sent = time.Now()
	}
	v.judge(fmt.Errorf("%s %s: %w", req.Method, req.URL.Path, err), got, reused, sent)
	return nil, err
}

// judge says what a request that was not answered means.
func (v *witness) judge(err error, got, reused bool, sent time.Time) {
	var op *net.OpError
	stopped := v.w.stopped.Load()
	switch {
	case stopped == 0:
		v.w.t.Errorf("before the server was told to stop: %v", err)
	case !got || errors.As(err, &op) && op.Op == "dial":
		v.w.refused.Add(1)
	case reused && sent.After(time.Unix(0, stopped).Add(v.w.delay+knowingTime)):
		v.w.late.Add(1)
	default:
		v.w.t.Errorf("not answered, %v after SIGTERM, over a connection that stood (used before: %v): %v", sent.Sub(time.Unix(0, stopped)), reused, err)
	}
}

// A wholeBody complains when it is cut off.
type wholeBody struct {
	io.ReadCloser
	t   testing.TB
	req *http.Request
}

func (b *wholeBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		b.t.Errorf("%s %s: the answer ends early: %v", b.req.Method, b.req.URL.Path, err)
	}
	return n, err
}
