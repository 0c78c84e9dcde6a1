package kubevirt

import (
	"strconv"

	"github.com/extentd/extentd/api"
	"github.com/extentd/extentd/auth"
)

// defaultPage is how many extents a page has if nobody says.
const defaultPage = 512

// Types of extents: those of a map without a bitmap, and with one.
const (
	typeHole  uint8 = 1
	typeDirty uint8 = 1
	typeZero  uint8 = 2
)

// sendMap implements GET /exports/{disk}/map.
func sendMap(x *api.Exchange) error {
	ask, err := window(x)
	if err != nil {
		return err
	}
	page, err := pageSize(x)
	if err != nil {
		return err
	}
	image, bitmap, err := disk(x)
	if err != nil {
		return err
	}
	h, err := x.Acquire(image, auth.Map, auth.Read)
	if err != nil {
		return err
	}
	defer h.Release()
	size := h.Device().Size()
	win, err := clamp(ask, size)
	if err != nil {
		return err
	}
	types, texts := full, [4]string{"data", "hole", "zero", "hole,zero"}
	if bitmap != "" {
		types, texts = incremental, [4]string{"clean", "dirty", "zero", "dirty,zero"}
	}
	return x.SendText(h, "application/json", func(t *api.Text) error {
		t.B = append(t.B, `{"extents":[`...)
		next, count := "null", 0
		for e, err := range api.Extents(x.Context(), h, win, bitmap, types) {
			if err != nil {
				return err
			}
			if count == page {
				next = strconv.FormatInt(e.Offset, 10)
				break
			}
			if count > 0 {
				t.B = append(t.B, ',')
			}
			count++
			t.B = appendExtent(t.B, e, texts[e.Flags])
			if err := t.Next(); err != nil {
				return err
			}
		}
		t.B = append(t.B, `],"next_offset":`+next+`,"virtual_size":`...)
		t.B = append(strconv.AppendInt(t.B, size, 10), "}\n"...)
		return nil
	})
}

func pageSize(x *api.Exchange) (int, error) {
	values, err := x.Query("page_size")
	if err != nil || values.Get("page_size") == "" {
		return defaultPage, err
	}
	n, err := strconv.Atoi(values.Get("page_size"))
	if err != nil || n <= 0 {
		return 0, api.Invalid("page_size", "must be a positive integer")
	}
	return n, nil
}

func appendExtent(b []byte, e api.FlaggedExtent, text string) []byte {
	b = append(b, `{"offset":`...)
	b = strconv.AppendInt(b, e.Offset, 10)
	b = append(b, `,"length":`...)
	b = strconv.AppendInt(b, e.Length, 10)
	b = append(b, `,"type":`...)
	b = strconv.AppendInt(b, int64(e.Flags), 10)
	b = append(b, `,"description":"`...)
	b = append(b, text...)
	return append(b, `"}`...)
}

// full is the type of an extent in a backup of everything.
func full(s api.Said) (is uint8) {
	if s.Hole {
		is |= typeHole
	}
	if s.Zero {
		is |= typeZero
	}
	return is
}

// incremental is the type in a backup of what a bitmap has.
func incremental(s api.Said) (is uint8) {
	if s.Dirty {
		is |= typeDirty
	}
	if s.Zero {
		is |= typeZero
	}
	return is
}
