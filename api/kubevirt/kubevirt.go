// Package kubevirt speaks the dialect of KubeVirt's export server for backups that
// are pulled: /exports/{disk}/map and /exports/{disk}/data, of images of this
// service.
//
// It guarantees what that server does with requests and answers them; where a client
// could notice a difference, openapi.yaml and docs/dialects.md say so.
package kubevirt

import (
	_ "embed"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"

	"github.com/extentd/extentd/api"
	"github.com/extentd/extentd/auth"
)

//go:embed openapi.yaml
var spec []byte

// tokenName is the header that has the caller's token, and the query parameter.
const tokenName = "x-kubevirt-export-token"

// New returns the dialect.
func New() *api.Dialect {
	const one = "/exports/{disk}"
	return &api.Dialect{
		Name: "kubevirt", Prefix: "/exports/", Spec: spec, Credential: token,
		Routes: []api.DialectRoute{
			{Method: http.MethodGet, Pattern: one + "/map", Handler: sendMap},
			{Method: http.MethodGet, Pattern: one + "/data", Handler: sendData},
			{Method: http.MethodHead, Pattern: one + "/data", Handler: sendData},
		},
	}
}

// token is what the caller presents, which is taken out of the query.
func token(x *api.Exchange) (string, error) {
	r := x.Request()
	secret := r.Header.Get(tokenName)
	if len(r.Header.Values(tokenName)) > 1 {
		return "", api.Invalid(tokenName, "is given more than once")
	}
	if !strings.Contains(r.URL.RawQuery, "=") {
		return secret, nil
	}
	values, err := x.Query(tokenName)
	if err != nil || !values.Has(tokenName) {
		return secret, err
	}
	given := values.Get(tokenName)
	values.Del(tokenName)
	r.URL.RawQuery = values.Encode()
	switch {
	case secret != "" && given != "" && secret != given:
		return "", fmt.Errorf("%w: the header and the query have different tokens", auth.ErrUnauthenticated)
	case secret == "":
		secret = given
	}
	return secret, nil
}

// disk is the image that the path names, and the bitmap after it, "" for none.
func disk(x *api.Exchange) (image, bitmap string, err error) {
	image, bitmap, named := strings.Cut(x.Path("disk"), "@")
	if named && bitmap == "" {
		return "", "", api.Invalid("disk", "ends with @, which the name of a bitmap must follow")
	}
	return image, bitmap, nil
}

// sendData implements GET and HEAD /exports/{disk}/data.
func sendData(x *api.Exchange) error {
	ask, err := window(x)
	if err != nil {
		return err
	}
	image, _, err := disk(x)
	if err != nil {
		return err
	}
	h, err := x.Acquire(image, auth.Read)
	if err != nil {
		return err
	}
	defer h.Release()
	win, err := clamp(ask, h.Device().Size())
	if err != nil {
		return err
	}
	return x.SendWindow(h, win)
}

// window is what the query asks for; a length of 0 is for all that there is.
func window(x *api.Exchange) (win api.Window, err error) {
	values, err := x.Query("offset", "length", "page_size")
	if err != nil {
		return win, err
	}
	if win.Offset, err = number("offset", values.Get("offset")); err != nil {
		return win, err
	}
	win.Length, err = number("length", values.Get("length"))
	return win, err
}

// number reads one that is not negative, 0 for none. What does not fit in 63 bits is
// beyond any end.
func number(name, text string) (int64, error) {
	if text == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, api.Invalid(name, "must be an integer, and not negative")
	}
	return int64(min(n, math.MaxInt64)), nil
}

// clamp cuts what is asked for at the end of the image.
func clamp(win api.Window, size int64) (api.Window, error) {
	if win.Offset >= size && (size > 0 || win.Offset > 0) {
		return win, api.Outside(size, fmt.Sprintf("offset %d is beyond the end of the image, which has %d bytes", win.Offset, size))
	}
	if rest := size - win.Offset; win.Length == 0 || win.Length > rest {
		win.Length = rest
	}
	return win, nil
}
