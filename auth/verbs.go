package auth

import (
	"fmt"
	"strings"
)

// Verbs are what may be done with an image; a set.
type Verbs uint8

// The verbs.
const (
	Map    Verbs = 1 << iota // list it, describe it, its limits, its extents
	Read                     // GET its data
	Write                    // change its content: data, zeros, allocations, mappings
	Create                   // make an image of that name
	Admin                    // delete it, resize it, repair it

	All = Map | Read | Write | Create | Admin
)

// verbNames are in the order of the bits.
var verbNames = [...]string{"map", "read", "write", "create", "admin"}

// ParseVerbs returns the set of the named verbs. An error names the one that is
// none.
func ParseVerbs(names []string) (Verbs, error) {
	var set Verbs
	for _, name := range names {
		bit := Verbs(0)
		for i, known := range verbNames {
			if name == known {
				bit = 1 << i
			}
		}
		if bit == 0 {
			return 0, fmt.Errorf("verb is %q, must be one of %s", name, strings.Join(verbNames[:], ", "))
		}
		set |= bit
	}
	return set, nil
}

// Names are the verbs of the set, as ParseVerbs reads them.
func (v Verbs) Names() []string {
	names := make([]string, 0, len(verbNames))
	for i, name := range verbNames {
		if v&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return names
}

// list is the verbs as a sentence has them.
func (v Verbs) list() string { return strings.Join(v.Names(), ", ") }

// Has reports whether all of w are in the set.
func (v Verbs) Has(w Verbs) bool { return v&w == w }

// String is the verbs, separated by commas.
func (v Verbs) String() string { return strings.Join(v.Names(), ",") }
