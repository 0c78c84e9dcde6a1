package main

import (
	"encoding/json"
	"errors"
	"strconv"
	"strings"

	"github.com/extentd/extentd/storage"
)

// A byteSize is a number of bytes in a configuration: 512, 64KiB, 1MiB, 2GiB.
type byteSize int64

// errSize says what a size looks like.
var errSize = errors.New("is no size, such as 512, 64KiB or 2GiB")

// sizeUnits are those of a size, each 1,024 times the one before.
const sizeUnits = "KMGTPE"

// parseByteSize reads a number and perhaps a binary unit. Nothing stands between
// them, and both are exact: a unit that could also mean a power of ten is none.
func parseByteSize(text string) (byteSize, error) {
	number, shift := text, 0
	if stem, has := strings.CutSuffix(text, "iB"); has && stem != "" {
		unit := strings.IndexByte(sizeUnits, stem[len(stem)-1])
		if unit < 0 {
			return 0, errSize
		}
		number, shift = stem[:len(stem)-1], 10*(unit+1)
	}
	if strings.Trim(number, "0123456789") != "" {
		return 0, errSize
	}
	n, err := strconv.ParseUint(number, 10, 64)
	if err != nil && !errors.Is(err, strconv.ErrRange) {
		return 0, errSize
	}
	if err != nil || n > uint64(storage.MaxSize)>>shift {
		return 0, errors.New("is more than 2EiB")
	}
	return byteSize(n << shift), nil
}

// String is the size in the largest unit of which it is a multiple.
func (s byteSize) String() string {
	unit := ""
	for i := 0; i < len(sizeUnits) && s != 0 && s%1024 == 0; i++ {
		s, unit = s/1024, sizeUnits[i:i+1]+"iB"
	}
	return strconv.FormatInt(int64(s), 10) + unit
}

// MarshalJSON keeps sizes readable where options are written down.
func (s byteSize) MarshalJSON() ([]byte, error) { return json.Marshal(s.String()) }
