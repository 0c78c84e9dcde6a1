package imageio

import (
	"fmt"
	"strings"

	"github.com/extentd/extentd/api"
	"github.com/extentd/extentd/audit"
	"github.com/extentd/extentd/auth"
)

// get implements GET /images/{ticket}.
func get(x *api.Exchange) error {
	closeIfAsked(x)
	h, err := x.Acquire(image(x), auth.Read)
	if err != nil {
		return err
	}
	defer h.Release()
	size := h.Device().Size()
	win, partial := api.Window{Length: size}, false
	if lines := x.Request().Header["Range"]; len(lines) > 0 {
		if win, err = readRange(strings.Join(lines, ","), size); err != nil {
			return err
		}
		partial = true
	}
	x.Header().Set("Content-Disposition", "attachment")
	return x.SendRange(h, win, partial)
}

// head implements HEAD /images/{ticket}, which says how large the image is.
func head(x *api.Exchange) error {
	h, err := x.Acquire(image(x), auth.Read)
	if err != nil {
		return err
	}
	defer h.Release()
	return x.SendWindow(h, api.Window{Length: h.Device().Size()})
}

// put implements PUT /images/{ticket}.
func put(x *api.Exchange) error {
	closeIfAsked(x)
	r := x.Request()
	if r.ContentLength < 0 {
		return api.Invalid("Content-Length", "the header is required")
	}
	flush, err := option(x, "flush", "y", "n")
	if err != nil {
		return err
	}
	win := api.Window{Length: r.ContentLength}
	switch lines := r.Header["Content-Range"]; {
	case len(lines) > 1:
		return api.Invalid("Content-Range", "is given more than once")
	case len(lines) == 1:
		if win.Offset, err = writeOffset(lines[0]); err != nil {
			return err
		}
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
	return x.Receive(h, win, flush == "y")
}

// inside makes sure that a range lies in an image of that size.
func inside(win api.Window, size int64) error {
	if win.Offset > size || win.Length > size-win.Offset {
		return api.Outside(size, fmt.Sprintf("%d bytes at %d end after the image, which has %d", win.Length, win.Offset, size))
	}
	return nil
}
