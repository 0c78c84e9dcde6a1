package service

import (
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"strings"
)

// generations derives the two generations of an image that is not written
// here: from the format and the identity of every file, so that they hold
// across restarts. That of the file system is left out: it may change with a
// reboot.
func (c *chain) generations(salt string) (mapping, data string) {
	sum := sha256.New()
	sum.Write([]byte(salt))
	field := make([]byte, 0, 64)
	for i := range c.files {
		f := &c.files[i]
		id := &f.identity
		field = append(field[:0], byte(len(f.format)))
		field = append(field, f.format...)
		ino := id.Ino
		if id.Device {
			ino = id.Dev
		}
		for _, v := range []uint64{ino, uint64(id.Size), uint64(id.Mtime), uint64(id.Ctime)} {
			field = binary.LittleEndian.AppendUint64(field, v)
		}
		sum.Write(field)
	}
	text := strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(sum.Sum(nil)[:15]))
	return "m-" + text, "d-" + text
}
