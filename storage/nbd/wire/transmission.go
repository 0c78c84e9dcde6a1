package wire

import "fmt"

// A Transmission is a set of flags that say what an export can do,
// NBD_FLAG_*.
type Transmission uint16

// Transmission flags.
const (
	HasFlags           Transmission = 1 << 0
	ReadOnly           Transmission = 1 << 1
	SendFlush          Transmission = 1 << 2
	SendFUA            Transmission = 1 << 3
	Rotational         Transmission = 1 << 4
	SendTrim           Transmission = 1 << 5
	SendWriteZeroes    Transmission = 1 << 6
	SendDF             Transmission = 1 << 7
	CanMultiConn       Transmission = 1 << 8
	SendResize         Transmission = 1 << 9
	SendCache          Transmission = 1 << 10
	SendFastZero       Transmission = 1 << 11
	BlockStatusPayload Transmission = 1 << 12
)

// A Command is what a request asks for, NBD_CMD_*.
type Command uint16

// The commands.
const (
	CmdRead        Command = 0
	CmdWrite       Command = 1
	CmdDisc        Command = 2
	CmdFlush       Command = 3
	CmdTrim        Command = 4
	CmdCache       Command = 5
	CmdWriteZeroes Command = 6
	CmdBlockStatus Command = 7
)

// String is the command's name in errors and counters.
func (c Command) String() string {
	names := [...]string{"read", "write", "disconnect", "flush", "trim", "cache", "write zeroes", "block status"}
	if int(c) >= len(names) {
		return fmt.Sprintf("command %d", uint16(c))
	}
	return names[c]
}

// Flags qualify a command, NBD_CMD_FLAG_*.
type Flags uint16

// Command flags.
const (
	FlagFUA        Flags = 1 << 0
	FlagNoHole     Flags = 1 << 1
	FlagDF         Flags = 1 << 2
	FlagReqOne     Flags = 1 << 3
	FlagFastZero   Flags = 1 << 4
	FlagPayloadLen Flags = 1 << 5
)

// A Chunk is the type of a chunk of a structured reply, NBD_REPLY_TYPE_*.
type Chunk uint16

// The types of chunks. Errors have the highest bit set.
const (
	ChunkNone           Chunk = 0
	ChunkOffsetData     Chunk = 1
	ChunkOffsetHole     Chunk = 2
	ChunkBlockStatus    Chunk = 5
	ChunkBlockStatusExt Chunk = 6
	chunkError          Chunk = 1 << 15
	ChunkError                = chunkError + 1
	ChunkErrorOffset          = chunkError + 2
)

// IsError reports whether the chunk says that the request failed.
func (c Chunk) IsError() bool { return c&chunkError != 0 }

// FlagDone marks the last chunk of a reply.
const FlagDone uint16 = 1 << 0

// Block status flags of the context base:allocation, NBD_STATE_*.
const (
	StateHole uint32 = 1 << 0
	StateZero uint32 = 1 << 1
)

// StateDirty is the flag of the contexts of dirty bitmaps.
const StateDirty = 1 << 0

// Names of metadata contexts.
const (
	BaseAllocation  = "base:allocation"
	AllocationDepth = "qemu:allocation-depth"
	DirtyBitmap     = "qemu:dirty-bitmap:" // before the name of one
)

// An Errno is an error on the wire: the only ones that there are.
type Errno uint32

// Errors, NBD_E*.
const (
	EPERM     Errno = 1
	EIO       Errno = 5
	ENOMEM    Errno = 12
	EINVAL    Errno = 22
	ENOSPC    Errno = 28
	EOVERFLOW Errno = 75
	ENOTSUP   Errno = 95
	ESHUTDOWN Errno = 108
)

// String is the errno's name.
func (e Errno) String() string {
	names := map[Errno]string{
		EPERM: "EPERM", EIO: "EIO", ENOMEM: "ENOMEM", EINVAL: "EINVAL", ENOSPC: "ENOSPC",
		EOVERFLOW: "EOVERFLOW", ENOTSUP: "ENOTSUP", ESHUTDOWN: "ESHUTDOWN",
	}
	if name, known := names[e]; known {
		return name
	}
	return fmt.Sprintf("errno %d", uint32(e))
}

// Magic numbers of requests and replies.
const (
	requestMagic    uint32 = 0x25609513
	extRequestMagic uint32 = 0x21e41c71
	simpleMagic     uint32 = 0x67446698
	structuredMagic uint32 = 0x668e33ef
	extReplyMagic   uint32 = 0x6e8a278c
)

// Lengths of headers, bytes.
const (
	RequestSize         = 28
	ExtRequestSize      = 32
	SimpleReplySize     = 16
	StructuredReplySize = 20
	ExtReplySize        = 32
)

// MaxPayload is the longest payload that is read or written: 64 MiB of data and
// what goes before it. Clients may ask for 32 MiB anywhere.
const MaxPayload = 64<<20 + 8
