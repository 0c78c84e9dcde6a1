package imageio

import (
	"encoding/json"

	"github.com/extentd/extentd/api"
	"github.com/extentd/extentd/audit"
	"github.com/extentd/extentd/auth"
	"github.com/extentd/extentd/storage/block"
)

// maxMessage is the longest message of a PATCH, bytes.
const maxMessage = 4 << 10

// A message is what a PATCH asks for. Members that are not known are ignored.
type message map[string]json.RawMessage

// patch implements PATCH /images/{ticket}.
func patch(x *api.Exchange) error {
	text, err := x.Body(maxMessage)
	if err != nil {
		return err
	}
	var m message
	if err := json.Unmarshal(text, &m); err != nil || m == nil {
		return api.Invalid("body", "must be a JSON object")
	}
	var op string
	if err := json.Unmarshal(m["op"], &op); err != nil {
		op = ""
	}
	switch op {
	case "zero":
		return zero(x, m)
	case "flush":
		return flush(x)
	}
	return api.Invalid("op", "must be zero or flush")
}

func zero(x *api.Exchange, m message) error {
	var win api.Window
	if _, given := m["size"]; !given {
		return api.Invalid("size", "is missing")
	}
	err := m.integer("size", &win.Length)
	if err == nil {
		err = m.integer("offset", &win.Offset)
	}
	flush := false
	if text, given := m["flush"]; given && err == nil && string(text) != "null" {
		if json.Unmarshal(text, &flush) != nil {
			err = api.Invalid("flush", "must be true or false")
		}
	}
	if err != nil {
		return err
	}
	x.Note(audit.Change{Offset: &win.Offset, Length: &win.Length})
	h, err := x.AcquireWritable(image(x), auth.Write)
	if err != nil {
		return err
	}
	defer h.Release()
	if err := inside(win, h.Device().Size()); err != nil {
		return err
	}
	return x.Change(h, win, func(d *block.Device) error {
		err := d.Zero(x.Context(), win.Offset, win.Length, false)
		if err == nil && flush {
			err = d.Flush(x.Context())
		}
		return err
	})
}

func flush(x *api.Exchange) error {
	h, err := x.AcquireWritable(image(x), auth.Write)
	if err != nil {
		return err
	}
	defer h.Release()
	return x.Change(h, api.Window{}, func(d *block.Device) error { return d.Flush(x.Context()) })
}

// integer reads a member that is a whole number and not negative, if it is there.
func (m message) integer(name string, into *int64) error {
	text, given := m[name]
	if !given {
		return nil
	}
	n, ok := number(string(text))
	if !ok {
		return api.Invalid(name, "must be an integer, and not negative")
	}
	*into = n
	return nil
}
