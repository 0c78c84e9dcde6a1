package storage

import "fmt"

// Status says what one layer knows of a range: four bits, of which only the
// combinations in [FormatStatuses] and [ProtocolStatuses] have a meaning.
type Status uint8

const (
	// Local: this layer, not its backing, supplies the bytes.
	Local Status = 1 << iota
	// Zero: the range reads as zeros.
	Zero
	// Alloc: storage is reserved for the range.
	Alloc
	// OffsetValid: Node and NodeOffset say where the raw bytes are.
	OffsetValid
)

// StatusRule is a row of a truth table.
type StatusRule struct {
	Status  Status
	Valid   bool // false: a layer that says so has a bug
	Meaning string
}

// FormatStatuses is what a format driver may say, indexed by Status.
func FormatStatuses() [16]StatusRule { return formatStatuses }

// ProtocolStatuses is what a protocol node may say, indexed by Status. Local
// is pointless there: a node has no backing.
func ProtocolStatuses() [16]StatusRule { return protocolStatuses }

var formatStatuses = [16]StatusRule{
	Local | Zero | Alloc | OffsetValid: {Local | Zero | Alloc | OffsetValid, true, "zeros, and the child is zero at offset"},
	Local | Alloc | OffsetValid:        {Local | Alloc | OffsetValid, true, "data at offset"},
	Local | Zero | OffsetValid:         {Local | Zero | OffsetValid, true, "zeros, the child has a hole at offset"},
	Local | OffsetValid:                {Local | OffsetValid, false, "neither data nor zeros"},
	Local | Zero | Alloc:               {Local | Zero | Alloc, true, "zeros, storage at an unknown offset"},
	Local | Alloc:                      {Local | Alloc, true, "data at an unknown offset"},
	Local | Zero:                       {Local | Zero, true, "zeros, no storage"},
	Local:                              {Local, false, "neither data nor zeros"},
	Zero | Alloc | OffsetValid:         {Zero | Alloc | OffsetValid, true, "defers to backing; allocated zeros at offset"},
	Alloc | OffsetValid:                {Alloc | OffsetValid, true, "defers to backing; preallocated at offset"},
	Zero | OffsetValid:                 {Zero | OffsetValid, false, "zeros that the layer does not supply"},
	OffsetValid:                        {OffsetValid, false, "an offset of nothing"},
	Zero | Alloc:                       {Zero | Alloc, false, "zeros that the layer does not supply"},
	Alloc:                              {Alloc, false, "storage that is nowhere"},
	Zero:                               {Zero, false, "zeros that the layer does not supply"},
	0:                                  {0, true, "defers to backing"},
}

var protocolStatuses = [16]StatusRule{
	Zero | Alloc | OffsetValid:         {Zero | Alloc | OffsetValid, true, "zeros, offset allocated"},
	Alloc | OffsetValid:                {Alloc | OffsetValid, true, "data, offset allocated"},
	Zero | OffsetValid:                 {Zero | OffsetValid, true, "zeros, offset is a hole"},
	OffsetValid:                        {OffsetValid, false, "an offset of nothing"},
	Zero | Alloc:                       {Zero | Alloc, true, "zeros, storage at an unknown offset"},
	Alloc:                              {Alloc, true, "data at an unknown offset"},
	Zero:                               {Zero, true, "zeros, a hole"},
	0:                                  {0, true, "this part cannot be accessed"},
	Local:                              {Local, false, "a node has no backing to tell apart"},
	Local | Zero:                       {Local | Zero, false, "a node has no backing to tell apart"},
	Local | Alloc:                      {Local | Alloc, false, "a node has no backing to tell apart"},
	Local | OffsetValid:                {Local | OffsetValid, false, "a node has no backing to tell apart"},
	Local | Zero | Alloc:               {Local | Zero | Alloc, false, "a node has no backing to tell apart"},
	Local | Zero | OffsetValid:         {Local | Zero | OffsetValid, false, "a node has no backing to tell apart"},
	Local | Alloc | OffsetValid:        {Local | Alloc | OffsetValid, false, "a node has no backing to tell apart"},
	Local | Zero | Alloc | OffsetValid: {Local | Zero | Alloc | OffsetValid, false, "a node has no backing to tell apart"},
}

// Has reports whether every bit of b is set in s.
func (s Status) Has(b Status) bool { return s&b == b }

// String writes the bits as design documents do: "L Z A O", a dash for each
// that is clear.
func (s Status) String() string {
	if s > 15 {
		return fmt.Sprintf("Status(%d)", uint8(s))
	}
	text := []byte("- - - -")
	for i, letter := range []byte("LZAO") {
		if s&(1<<i) != 0 {
			text[2*i] = letter
		}
	}
	return string(text)
}
