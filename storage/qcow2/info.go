package qcow2

// Info is what the header and its extensions say of an image.
type Info struct {
	Version         int    // 2 or 3
	ClusterSize     int64  // bytes, a power of two, 512 to 2 MiB
	RefcountBits    int    // 1 to 64, a power of two
	CompressionType string // of compressed clusters: "zlib" or "zstd"
	ExtendedL2      bool   // clusters have 32 subclusters
	LazyRefcounts   bool
	Dirty           bool   // refcounts may be out of date; what is read is not
	Corrupt         bool   // somebody has found the image corrupt: it is written to no more
	BackingFile     string // as stored: untrusted; "" for none
	BackingFormat   string // as stored: untrusted; "" for none
	HasDataFile     bool   // data clusters lie in an external file
	DataFile        string // its name as stored: untrusted; "" for none
	DataFileRaw     bool   // the external file is a raw image of the disk
	Encryption      string // "", "aes" or "luks"
	Snapshots       int    // internal ones
	Bitmaps         int    // persistent ones that are consistent with the image
}

// Info returns what was read when the image was opened, or last written.
func (i *Image) Info() Info { return i.state.Load().info }

func newInfo(h *header, ext *extensions, backing string) Info {
	return Info{
		Version:         int(h.version),
		ClusterSize:     h.clusterSize(),
		RefcountBits:    1 << h.refcountOrder,
		CompressionType: [...]string{compressionZlib: "zlib", compressionZstd: "zstd"}[h.compressionType],
		ExtendedL2:      h.extendedL2(),
		LazyRefcounts:   h.compatible&compatLazyRefcounts != 0,
		Dirty:           h.incompatible&incompatDirty != 0,
		Corrupt:         h.incompatible&incompatCorrupt != 0,
		BackingFile:     backing,
		BackingFormat:   ext.backingFormat,
		HasDataFile:     h.incompatible&incompatDataFile != 0,
		DataFile:        ext.dataFile,
		DataFileRaw:     h.autoclear&autoclearDataFileRaw != 0,
		Encryption:      [...]string{cryptNone: "", cryptAES: "aes", cryptLUKS: "luks"}[h.cryptMethod],
		Snapshots:       int(h.snapshots),
		Bitmaps:         int(ext.bitmaps.count),
	}
}

// Encryption is the method that encrypts the image's data, "" for none. Such an
// image is mapped, and not read.
func (i *Image) Encryption() string { return i.info.Encryption }
