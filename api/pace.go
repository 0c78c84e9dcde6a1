package api

import (
	"net/http"
	"time"
)

// stride is how much of a body must move within load.Options.Stall, or what there
// is left of it: whoever does less is cut off. However long all of it takes does
// not matter.
const stride = 64 << 10

// awaitBody gives the client of a request time for the next stride of its body.
// A deadline that has passed fails the read, and ends the connection.
func (s *server) awaitBody(w http.ResponseWriter, now time.Time) {
	if stall := s.opt.Load.Stall(); stall > 0 {
		_ = http.NewResponseController(w).SetReadDeadline(now.Add(stall)) // not where there is no connection
	}
}

// bodyCame takes the deadline away: net/http reads ahead while a request is
// answered, and takes a deadline that passes for the client's end.
func (s *server) bodyCame(w http.ResponseWriter) {
	if s.opt.Load.Stall() > 0 {
		_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
	}
}

// begin gives the client time to send the body that a request may have, whether
// it is wanted or not: net/http reads it before it answers. Those whose answer may
// take long are answered without.
func (s *server) begin(w http.ResponseWriter, r *http.Request, now time.Time) {
	if r.ContentLength == 0 {
		return
	}
	s.awaitBody(w, now)
	if r.ProtoMajor == 1 && (r.Method == http.MethodGet || r.Method == http.MethodHead) {
		w.Header().Set("Connection", "close")
	}
}

// writePaced writes p, a stride in each stall. Package conn does that for HTTP/1,
// where a response has the connection for itself; streams of HTTP/2 are held up
// one by one.
func (r *response) writePaced(p []byte) (n int, err error) {
	control := http.NewResponseController(r.ResponseWriter)
	for n < len(p) && err == nil {
		_ = control.SetWriteDeadline(time.Now().Add(r.stall)) // not where there is no connection
		var k int
		k, err = r.ResponseWriter.Write(p[n:min(n+stride, len(p))])
		n += k
	}
	if err == nil {
		_ = control.SetWriteDeadline(time.Time{})
	}
	return n, err
}

// end gives the client time for what is still in buffers when the handler is
// done.
func (r *response) end() {
	if r.stall > 0 {
		_ = http.NewResponseController(r.ResponseWriter).SetWriteDeadline(time.Now().Add(r.stall))
	}
}
