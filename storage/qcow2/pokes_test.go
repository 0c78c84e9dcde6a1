package qcow2_test

import (
	"bytes"
	"strings"

	"github.com/extentd/extentd/storage"
)

func headerPokes() []poke {
	corrupt, unsupported := storage.ErrCorrupt, storage.ErrUnsupported
	v2 := builder{version: 2}
	max64 := ^uint64(0)
	return []poke{
		{name: "well-formed"},
		{name: "well-formed v2", base: v2},
		{name: "magic", patches: field(0, []byte("QFI\xfa")), err: corrupt, says: "not a qcow2 image"},
		{name: "version 1", patches: field(4, be32(1)), err: unsupported, says: "version is 1"},
		{name: "version 4", patches: field(4, be32(4)), err: unsupported, says: "version is 4"},
		{name: "version max", patches: field(4, be32(1<<32-1)), err: unsupported, says: "version"},
		{name: "cluster_bits 8", patches: field(20, be32(8)), err: corrupt, says: "cluster_bits is 8, must be 9 to 21"},
		{name: "cluster_bits 22", patches: field(20, be32(22)), err: corrupt, says: "cluster_bits is 22"},
		{name: "cluster_bits max", patches: field(20, be32(1<<32-1)), err: corrupt, says: "cluster_bits"},
		{name: "header_length 103", patches: field(100, be32(103)), err: corrupt, says: "header_length is 103, must be at least 104"},
		{name: "header_length 104", patches: field(100, be32(104))},
		{name: "header_length 107", patches: field(100, be32(107))},
		{name: "header_length cluster", patches: field(100, be32(65536))},
		{name: "header_length beyond", patches: field(100, be32(65537)), err: corrupt, says: "header_length is 65537, exceeds the cluster size 65536"},
		{name: "v2 has no header_length", base: v2, patches: field(100, be32(1<<32-1))},
		{name: "backing offset in the header", patches: []patch{{8, be64(8)}, {16, be32(4)}}},
		{name: "backing offset cluster", patches: field(8, be64(65536))},
		{name: "backing offset beyond", patches: field(8, be64(65537)), err: corrupt, says: "backing_file_offset is 0x10001"},
		{name: "backing offset max", patches: field(8, be64(max64)), err: corrupt, says: "backing_file_offset"},
		{name: "backing name 1023", patches: []patch{{8, be64(60000)}, {16, be32(1023)}}},
		{name: "backing name 1024", patches: []patch{{8, be64(60000)}, {16, be32(1024)}}, err: corrupt, says: "backing_file_size is 1024, may be 1023 at most"},
		{name: "backing name past the cluster", patches: []patch{{8, be64(65530)}, {16, be32(7)}}, err: corrupt, says: "backing_file_size is 7, may be 6 at most"},
		{name: "backing name without offset", patches: field(16, be32(1<<31))},
		{name: "backing name max", patches: []patch{{8, be64(512)}, {16, be32(1<<32 - 1)}}, err: corrupt, says: "backing_file_size"},
		{name: "dirty", base: builder{incompatible: 1}},
		{name: "corrupt", base: builder{incompatible: 2}},
		{name: "bit 5", base: builder{incompatible: 1 << 5}, err: unsupported, says: "incompatible bit 5"},
		{name: "bit 63", base: builder{incompatible: 1 << 63}, err: unsupported, says: "incompatible bit 63"},
		{name: "all bits but those known", base: builder{incompatible: max64 &^ 31}, err: unsupported, says: "incompatible bit 5, incompatible bit 6"},
		{name: "named bits", base: builder{
			incompatible: 1<<40 | 1<<41 | 1<<42,
			extensions:   []extension{{extFeatures, names("\x01\x28compatible", "\x00\x29not\nquite", "\x00\x28forty", "\x00\xffbeyond", "", "\x00\x2atoo late")}},
		}, err: unsupported, says: `"not\nquite" (bit 41), "forty" (bit 40), incompatible bit 42`},
		{name: "name of 46 bytes", base: builder{
			incompatible: 1 << 40, extensions: []extension{{extFeatures, names("\x00\x28" + strings.Repeat("n", 46))}},
		}, err: unsupported, says: `"` + strings.Repeat("n", 46) + `" (bit 40)`},
		{name: "unknown bit before a bad extension", base: builder{incompatible: 1 << 5, extensions: []extension{{extBitmaps, make([]byte, 1)}}}, err: unsupported, says: "bit 5"},
		{name: "v2 has no features", base: v2, patches: field(76, be64(1<<20))},
		{name: "compatible bits", base: builder{compatible: max64}},
		{name: "autoclear bits", base: builder{autoclear: max64 &^ 3}},
		{name: "compression type 1 without its bit", patches: field(104, []byte{1}), err: corrupt, says: "compression_type is 1"},
		{name: "compression type 0 with its bit", base: builder{incompatible: 1 << 3}, patches: field(104, []byte{0}), err: corrupt, says: "compression_type is 0"},
		{name: "compression type 2", base: builder{incompatible: 1 << 3}, patches: field(104, []byte{2}), err: unsupported, says: "compression_type is 2"},
		{name: "compression type past the header", base: builder{incompatible: 1 << 3}, patches: field(100, be32(104)), err: corrupt, says: "compression_type is 0"},
		{name: "zstd", base: builder{incompatible: 1 << 3}},
		{name: "extended, cluster_bits 13", base: builder{extended: true, clusterBits: 13, size: 1 << 20}, err: corrupt, says: "cluster_bits is 13, must be at least 14"},
		{name: "extended, cluster_bits 14", base: builder{extended: true, clusterBits: 14, size: 1 << 20}},
		{name: "refcount_order 7", patches: field(96, be32(7)), err: corrupt, says: "refcount_order is 7, may be 6 at most"},
		{name: "refcount_order max", patches: field(96, be32(1<<32-1)), err: corrupt, says: "refcount_order"},
		{name: "v2 has no refcount_order", base: v2, patches: field(96, be32(7))},
		{name: "crypt_method 3", patches: field(32, be32(3)), err: unsupported, says: "crypt_method is 3"},
		{name: "refcount table of 0", patches: field(56, be32(0)), err: corrupt, says: "refcount_table_clusters is 0"},
		{name: "refcount table of 8 MiB", patches: field(56, be32(128))},
		{name: "refcount table of more", patches: field(56, be32(129)), err: corrupt, says: "refcount_table has 129 entries"},
		{name: "refcount table of max", patches: field(56, be32(1<<32-1)), err: corrupt, says: "refcount_table"},
		{name: "refcount table unaligned", patches: field(48, be64(65536+512)), err: corrupt, says: "refcount_table_offset is 0x10200"},
		{name: "refcount table at 2^62", patches: field(48, be64(1<<62))},
		{name: "refcount table at 2^63", patches: field(48, be64(1<<63)), err: corrupt, says: "refcount_table_offset"},
		{name: "refcount table past the readable", patches: field(48, be64(1<<63-1<<30)), err: corrupt, says: "refcount_table_offset"},
		{name: "snapshots unaligned, none", patches: field(64, be64(1)), err: corrupt, says: "snapshots_offset is 0x1,"},
		{name: "snapshots 65537", patches: field(60, be32(65537)), err: corrupt, says: "snapshots has 65537 entries"},
		{name: "snapshots max", patches: field(60, be32(1<<32-1)), err: corrupt, says: "snapshots has"},
		{name: "snapshots at 2^63, none", patches: field(64, be64(1<<63)), err: corrupt, says: "snapshots_offset"},
		{name: "snapshots at the last cluster, none", patches: field(64, be64(1<<63-65536))},
		{name: "snapshots at the last cluster", patches: []patch{{60, append(be32(1), be64(1<<63-65536)...)}}, err: corrupt, says: "snapshot table: entry 0"},
		{name: "snapshots past the end of the file", patches: []patch{{60, append(be32(5000), be64(1<<40)...)}}},
		{name: "l1 unaligned", patches: field(40, be64(131072+8)), err: corrupt, says: "l1_table_offset is 0x20008"},
		{name: "l1 at 2^63", patches: field(40, be64(1<<63)), err: corrupt, says: "l1_table_offset"},
		{name: "l1 past the readable", patches: field(40, be64(1<<63-1<<30)), err: corrupt, says: "l1_table_offset"},
		{name: "l1 past the end of the file", patches: field(40, be64(1<<62))},
		{name: "l1 of 32 MiB", patches: field(36, be32(4<<20))},
		{name: "l1 of more", patches: field(36, be32(4<<20+1)), err: corrupt, says: "l1_table has 4194305 entries"},
		{name: "l1 of max", patches: field(36, be32(1<<32-1)), err: corrupt, says: "l1_table has"},
		{name: "l1 of 0", patches: field(36, be32(0)), err: corrupt, says: "l1_size is 0, must be at least 1"},
		{name: "l1 of 0, size 0", patches: []patch{{36, be32(0)}, {24, be64(0)}}},
		{name: "size one byte more than l1 maps", patches: field(24, be64(512<<20+1)), err: corrupt, says: "l1_size is 1, must be at least 2"},
		{name: "size all that l1 maps", patches: field(24, be64(512<<20))},
		{name: "size 2^61 + 512", base: builder{clusterBits: 21}, patches: []patch{{36, be32(4 << 20)}, {24, be64(1<<61 + 512)}}, err: corrupt, says: "size is 2305843009213694464"},
		{name: "size 2^61", base: builder{clusterBits: 21}, patches: []patch{{36, be32(4 << 20)}, {24, be64(1 << 61)}}},
		{name: "size 2^63", patches: field(24, be64(1<<63)), err: corrupt, says: "size"},
		{name: "size max", patches: field(24, be64(max64)), err: corrupt, says: "size"},
		{name: "data-file-raw without data file", base: builder{autoclear: 2}, err: corrupt, says: "raw external data file", ours: true}, // later versions of QEMU refuse it
		{name: "data-file-raw with a backing file", base: builder{incompatible: 4, autoclear: 2}, patches: []patch{{8, be64(60000)}, {16, be32(4)}, {60000, []byte("base")}}, err: corrupt, says: "excludes a backing file", ours: true},
		{name: "data file and a snapshot", base: builder{incompatible: 4}, patches: field(60, be32(1)), err: corrupt, says: "nb_snapshots is 1", ours: true},
		{name: "empty file", patches: []patch{{-1, nil}}, err: corrupt, says: "not a qcow2 image"},
	}
}

func extensionPokes() []poke {
	corrupt := storage.ErrCorrupt
	crypto := func(off, length uint64) []byte { return append(be64(off), be64(length)...) }
	bitmaps := func(count, reserved uint32, size, off uint64) []byte {
		return bytes.Join([][]byte{be32(count), be32(reserved), be64(size), be64(off)}, nil)
	}
	ext := func(kind uint32, data []byte) builder { return builder{extensions: []extension{{kind, data}}} }
	withBitmaps := func(data []byte) builder {
		return builder{autoclear: 1, extensions: []extension{{extBitmaps, data}}}
	}
	return []poke{
		{name: "unknown", base: ext(0x12345678, make([]byte, 1000))},
		{name: "after the end", base: builder{extensions: []extension{{0, nil}, {extCrypto, nil}}}},
		{name: "end with a length", patches: field(116, be32(65536-120))},
		{name: "end with a length too large", patches: field(116, be32(65536-119)), err: corrupt, says: "its length is 65417, may be 65416 at most"},
		{name: "too long", patches: []patch{{112, be32(1)}, {116, be32(65536 - 119)}}, err: corrupt, says: "header extension 0x00000001 at 0x70"},
		{name: "length max", patches: []patch{{112, be32(1)}, {116, be32(1<<32 - 1)}}, err: corrupt, says: "its length is 4294967295"},
		{name: "all of the cluster", patches: []patch{{112, be32(1)}, {116, be32(65536 - 120)}}},
		{name: "into the backing name", base: ext(1, make([]byte, 64)), patches: field(8, be64(160)), err: corrupt, says: "may be 40 at most"},
		{name: "up to the backing name", base: ext(1, make([]byte, 40)), patches: []patch{{8, be64(160)}, {16, be32(3)}}},
		{name: "header cut by the backing name", patches: field(8, be64(116)), err: corrupt, says: "may be 0 at most"},
		{name: "thousands of empty ones", patches: field(112, bytes.Repeat(append(be32(1), be32(0)...), 8000))},
		{name: "backing format of 15", base: ext(extBackingFormat, make([]byte, 15))},
		{name: "backing format of 16", base: ext(extBackingFormat, make([]byte, 16)), err: corrupt, says: "a backing format is 16"},
		{name: "encryption header without encryption", base: ext(extCrypto, crypto(0x30000, 512)), err: corrupt, says: "crypt_method is 0, must be 2"},
		{name: "encryption header with aes", base: builder{crypt: 1, extensions: []extension{{extCrypto, crypto(0x30000, 512)}}}, err: corrupt, says: "crypt_method is 1"},
		{name: "encryption header of 8", base: builder{crypt: 2, extensions: []extension{{extCrypto, be64(0x30000)}}}, err: corrupt, says: "the length is 8, must be 16"},
		{name: "encryption header unaligned", base: builder{crypt: 2, extensions: []extension{{extCrypto, crypto(0x30200, 512)}}}, err: corrupt, says: "0x30200"},
		{name: "luks without its header", base: builder{crypt: 2}, err: corrupt, says: "crypt_method is 2"}, // qemu-img 7.2 crashes
		{name: "bitmaps, not consistent", base: ext(extBitmaps, bitmaps(1<<31, 1, 0, 1))},
		{name: "bitmaps of 16, not consistent", base: ext(extBitmaps, make([]byte, 16)), err: corrupt, says: "the length is 16, must be 24"},
		{name: "bitmaps of 32", base: withBitmaps(make([]byte, 32)), err: corrupt, says: "the length is 32"},
		{name: "bitmaps reserved", base: withBitmaps(bitmaps(1, 1, 32, 0x30000)), err: corrupt, says: "reserved field is 0x1"},
		{name: "bitmaps none", base: withBitmaps(bitmaps(0, 0, 32, 0x30000)), err: corrupt, says: "nb_bitmaps is 0"},
		{name: "bitmaps 65536", base: withBitmaps(bitmaps(65536, 0, 32, 0x30000)), err: corrupt, says: "nb_bitmaps is 65536"},
		{name: "bitmaps unaligned", base: withBitmaps(bitmaps(1, 0, 32, 0x30200)), err: corrupt, says: "bitmap_directory_offset is 0x30200"},
		{name: "bitmaps at 2^63", base: withBitmaps(bitmaps(1, 0, 32, 1<<63)), err: corrupt, says: "bitmap_directory_offset"},
		{name: "bitmaps directory empty", base: withBitmaps(bitmaps(1, 0, 0, 0x30000)), err: corrupt, says: "bitmap_directory_size is 0"},
		{name: "bitmaps directory too large", base: withBitmaps(bitmaps(1, 0, 67107841, 0x30000)), err: corrupt, says: "bitmap_directory_size is 67107841"},
		{name: "bitmaps directory size max", base: withBitmaps(bitmaps(1, 0, 1<<64-1, 0x30000)), err: corrupt, says: "bitmap_directory_size"},
		{name: "bitmaps bit without extension", base: builder{autoclear: 1}},
		{name: "data file name too long", base: builder{incompatible: 4, extensions: []extension{{extDataFile, bytes.Repeat([]byte("n"), 4096)}}}, err: corrupt, says: "the length of a data file name is 4096", ours: true},
	}
}
