package imageio

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/extentd/extentd/api"
	"github.com/extentd/extentd/auth"
	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage"
)

// Flags of extents.
const (
	isZero uint8 = 1 << iota
	isHole
	isDirty
)

// extents implements GET /images/{ticket}/extents.
func extents(x *api.Exchange) error {
	about, err := option(x, "context", "zero", "dirty")
	if err != nil {
		return err
	}
	h, err := x.Acquire(image(x), auth.Map, auth.Read)
	if err != nil {
		return err
	}
	defer h.Release()
	if about == "dirty" {
		name, err := dirtyBitmap(x, h)
		if err != nil {
			return err
		}
		return send(x, h, name, dirtyFlags, appendDirty)
	}
	return send(x, h, "", zeroFlags, appendZero)
}

// send answers with the whole map, extent by extent.
func send(x *api.Exchange, h *service.Handle, bitmap string, flags func(api.Said) uint8, add func([]byte, api.FlaggedExtent) []byte) error {
	return x.SendText(h, "application/json", func(t *api.Text) error {
		t.B = append(t.B, '[')
		for e, err := range api.Extents(x.Context(), h, api.Window{Length: h.Device().Size()}, bitmap, flags) {
			if err != nil {
				return err
			}
			if e.Offset > 0 {
				t.B = append(t.B, ", "...)
			}
			t.B = append(t.B, `{"start": `...)
			t.B = strconv.AppendInt(t.B, e.Offset, 10)
			t.B = append(t.B, `, "length": `...)
			t.B = strconv.AppendInt(t.B, e.Length, 10)
			t.B = add(t.B, e)
			if err := t.Next(); err != nil {
				return err
			}
		}
		t.B = append(t.B, "]\n"...)
		return nil
	})
}

func appendZero(b []byte, e api.FlaggedExtent) []byte {
	b = strconv.AppendBool(append(b, `, "zero": `...), e.Flags&isZero != 0)
	b = strconv.AppendBool(append(b, `, "hole": `...), e.Flags&isHole != 0)
	return append(b, '}')
}

func appendDirty(b []byte, e api.FlaggedExtent) []byte {
	b = strconv.AppendBool(append(b, `, "dirty": `...), e.Flags&isDirty != 0)
	b = strconv.AppendBool(append(b, `, "zero": `...), e.Flags&isZero != 0)
	return append(b, '}')
}

func zeroFlags(s api.Said) (flags uint8) {
	if s.Zero {
		flags |= isZero
	}
	if s.None {
		flags |= isHole
	}
	return flags
}

func dirtyFlags(s api.Said) (flags uint8) {
	if s.Zero {
		flags |= isZero
	}
	if s.Dirty {
		flags |= isDirty
	}
	return flags
}

// dirtyBitmap is the one that the path names, or else the only one of the image that
// can be trusted.
func dirtyBitmap(x *api.Exchange, h *service.Handle) (string, error) {
	if name, named := bitmap(x); named {
		if name == "" {
			return "", api.Invalid("ticket", "ends with @, which the name of a bitmap must follow")
		}
		err := h.Dirty(x.Context(), name, 0, 0, nil)
		if errors.Is(err, storage.ErrUnsupported) {
			err = noDirty("its format has no bitmaps")
		}
		return name, err
	}
	info, err := h.Info(x.Context())
	if err != nil {
		return "", err
	}
	var names []string
	if info.QCOW2 != nil {
		for _, b := range info.QCOW2.Bitmaps {
			if !b.Inconsistent {
				names = append(names, b.Name)
			}
		}
	}
	switch len(names) {
	case 0:
		return "", noDirty("it has no bitmap that can be trusted")
	case 1:
		return names[0], nil
	}
	return "", noDirty(fmt.Sprintf("it has %d bitmaps, and the path must name one: /images/TICKET@BITMAP", len(names)))
}

func noDirty(why string) error {
	return fmt.Errorf("%w: the image has no dirty extents: %s", storage.ErrNotFound, why)
}
