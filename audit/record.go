package audit

import (
	"time"
)

// A Record says who changed something, or tried to, and what came of it. Of a
// request over HTTP there is one; of a connection over NBD one for all that it
// changed. What is empty is left out.
type Record struct {
	Time     time.Time `json:"time"`     // when it began, UTC
	Level    string    `json:"level"`    // always "INFO", and
	Message  string    `json:"msg"`      // always "audit", as other lines of logs have them
	Audit    bool      `json:"audit"`    // always true: it tells records from other lines
	Protocol string    `json:"protocol"` // "http" or "nbd"
	Request  string    `json:"request,omitempty"`
	Trace    string    `json:"trace_id,omitempty"`
	Caller   Caller    `json:"caller"`
	Remote   string    `json:"remote"`           // address and port of the peer
	Method   string    `json:"method,omitempty"` // of HTTP
	Route    string    `json:"route,omitempty"`  // as in the contract; "" for none
	Image    string    `json:"image,omitempty"`
	Change   *Change   `json:"change,omitempty"`
	NBD      *NBD      `json:"nbd,omitempty"`
	Status   int       `json:"status,omitempty"` // of HTTP; 0: none was sent
	Result   string    `json:"result"`           // "ok", "refused", "failed" or "aborted"
	Problem  string    `json:"problem,omitempty"`
	Replayed bool      `json:"replayed,omitempty"`       // an earlier answer was given again, and nothing changed
	Received int64     `json:"received_bytes,omitempty"` // of a body
	Seconds  float64   `json:"seconds"`
}

// The results.
const (
	OK      = "ok"
	Refused = "refused" // it was not done, and the caller was told why
	Failed  = "failed"  // the server could not do it; a part may be done
	Aborted = "aborted" // the connection ended before it was done; a part may be
)

// A Caller is who made the request, as far as that is known.
type Caller struct {
	Kind    string `json:"kind"` // "anyone", "token", "jwt", "certificate", "ticket"; "unknown": what was presented is not valid
	Name    string `json:"name,omitempty"`
	Subject string `json:"subject,omitempty"`
	Ticket  string `json:"ticket,omitempty"` // its id
}

// A Change is the parameters of a request that matter: what of an image, and what
// it was to become. Bytes.
type Change struct {
	Offset     *int64   `json:"offset,omitempty"`
	Length     *int64   `json:"length,omitempty"`
	Name       string   `json:"name,omitempty"` // of what is to be made
	Size       *int64   `json:"size,omitempty"`
	Allocation string   `json:"allocation,omitempty"`
	Snapshot   string   `json:"snapshot,omitempty"` // as it was asked for
	Bitmap     string   `json:"bitmap,omitempty"`
	Enabled    *bool    `json:"enabled,omitempty"` // of a bitmap
	Images     []string `json:"images,omitempty"`  // of a batch of bitmaps
	Updates    int      `json:"updates,omitempty"` // of a batch
	Repair     string   `json:"repair,omitempty"`
	Ticket     string   `json:"ticket,omitempty"` // its id
	Verbs      []string `json:"verbs,omitempty"`
}

// NBD is what a connection changed.
type NBD struct {
	Writes       int64 `json:"writes,omitempty"`
	Zeros        int64 `json:"zeros,omitempty"`
	Trims        int64 `json:"trims,omitempty"`
	WrittenBytes int64 `json:"written_bytes,omitempty"`
	ZeroedBytes  int64 `json:"zeroed_bytes,omitempty"`
	TrimmedBytes int64 `json:"trimmed_bytes,omitempty"`
	Errors       int64 `json:"errors,omitempty"` // changes that failed
}
