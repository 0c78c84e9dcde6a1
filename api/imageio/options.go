package imageio

import (
	"strings"

	"github.com/extentd/extentd/api"
	"github.com/extentd/extentd/auth"
)

// An optionsAnswer says what can be done.
type optionsAnswer struct {
	Features   []string `json:"features"`
	MaxReaders int      `json:"max_readers,omitempty"`
	MaxWriters int      `json:"max_writers,omitempty"`
	Size       *int64   `json:"size,omitempty"`
}

// options implements OPTIONS /images/{ticket}, also for every ticket.
func options(x *api.Exchange) error {
	answer := optionsAnswer{Features: []string{}}
	verbs := auth.Map | auth.Read | auth.Write
	if !aboutAll(x) {
		h, err := x.Acquire(image(x), auth.Map, auth.Read, auth.Write)
		if err != nil {
			return err
		}
		defer h.Release()
		size := h.Device().Size()
		answer.MaxReaders, answer.MaxWriters, answer.Size = connections, connections, &size
		verbs = x.Caller().Grants.Verbs(h.Name())
		if h.ReadOnly() {
			verbs &^= auth.Write
		}
	}
	allow := []string{"OPTIONS"}
	if verbs.Has(auth.Read) {
		allow = append(allow, "GET", "HEAD")
		answer.Features = append(answer.Features, "checksum")
	}
	if verbs&(auth.Map|auth.Read) != 0 {
		answer.Features = append(answer.Features, "extents")
	}
	if verbs.Has(auth.Write) {
		allow = append(allow, "PUT", "PATCH")
		answer.Features = append(answer.Features, "flush", "zero")
	}
	x.Header().Set("Allow", strings.Join(allow, ","))
	return x.SendJSON(answer)
}
