package qcow2

import (
	"fmt"

	"github.com/extentd/extentd/storage"
)

// corrupt is an error about what the format's specification, or QEMU, does not
// allow.
func corrupt(format string, args ...any) error {
	return fmt.Errorf("qcow2: %w", malformed(format, args...))
}

// malformed is corrupt for callers that say where it is.
func malformed(format string, args ...any) error {
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), storage.ErrCorrupt)
}

// unsupported is an error about what this package does not know.
func unsupported(format string, args ...any) error {
	return fmt.Errorf("qcow2: %s: %w", fmt.Sprintf(format, args...), storage.ErrUnsupported)
}
