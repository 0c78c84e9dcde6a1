package wire

// Magic numbers of the handshake.
const (
	InitMagic   uint64 = 0x4e42444d41474943 // "NBDMAGIC", the first bytes of every server
	OptionMagic uint64 = 0x49484156454f5054 // "IHAVEOPT", of fixed newstyle
	oldMagic    uint64 = 0x00420281861253   // of servers that negotiate nothing
	replyMagic  uint64 = 0x0003e889045565a9
)

// Handshake flags of the server; the client's are the same bits.
const (
	FlagFixedNewstyle uint16 = 1 << 0
	FlagNoZeroes      uint16 = 1 << 1
)

// An Option is what a client asks for during the handshake.
type Option uint32

// The options, NBD_OPT_*.
const (
	OptExportName      Option = 1
	OptAbort           Option = 2
	OptList            Option = 3
	OptStartTLS        Option = 5
	OptInfo            Option = 6
	OptGo              Option = 7
	OptStructuredReply Option = 8
	OptListMetaContext Option = 9
	OptSetMetaContext  Option = 10
	OptExtendedHeaders Option = 11
)

// An OptionReply is the type of an answer to an option.
type OptionReply uint32

// The types of answers, NBD_REP_*. Errors have the highest bit set.
const (
	RepAck         OptionReply = 1
	RepServer      OptionReply = 2
	RepInfo        OptionReply = 3
	RepMetaContext OptionReply = 4

	repError            OptionReply = 1 << 31
	RepErrUnsup                     = repError + 1
	RepErrPolicy                    = repError + 2
	RepErrInvalid                   = repError + 3
	RepErrPlatform                  = repError + 4
	RepErrTLSReqd                   = repError + 5
	RepErrUnknown                   = repError + 6
	RepErrShutdown                  = repError + 7
	RepErrBlockSizeReqd             = repError + 8
	RepErrTooBig                    = repError + 9
	RepErrExtHeaderReqd             = repError + 10
)

// IsError reports whether the answer is a refusal.
func (r OptionReply) IsError() bool { return r&repError != 0 }

// An Info is a kind of information about an export.
type Info uint16

// The kinds, NBD_INFO_*.
const (
	InfoExport      Info = 0
	InfoName        Info = 1
	InfoDescription Info = 2
	InfoBlockSize   Info = 3
)

// Bounds of the handshake.
const (
	// MaxString is the longest name or query, bytes of UTF-8.
	MaxString = 4096
	// MaxOption is the longest data of an option that is read: an export's name,
	// and as many queries or requests for information as make sense.
	MaxOption = 64 << 10
	// MaxOptions is how many options a client may send.
	MaxOptions = 4096
)
