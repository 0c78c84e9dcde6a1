package test

import (
	"fmt"
	"strings"
)

// kinds is the table of images that every reading test goes through.
var kinds = joined(
	plainKinds(), clusterKinds(), refcountKinds(), compressedKinds(), extendedKinds(), backingKinds(),
	dataFileKinds(), preallocationKinds(), sizeKinds(), stateKinds(), rawKinds(), encryptedKinds(),
)

func joined(groups ...[]*kind) []*kind {
	var all []*kind
	for _, group := range groups {
		all = append(all, group...)
	}
	return all
}

// scattered is an image of 64 KiB clusters or those of the options, with
// changes all over it.
func scattered(size, cluster int64, options ...string) func(m *maker) string {
	return func(m *maker) string {
		file := m.create(".qcow2", size, append(options, fmt.Sprint("cluster_size=", cluster))...)
		m.scatter(file, size, cluster, 40)
		return file
	}
}

func plainKinds() []*kind {
	only := func(compat string, ops ...string) func(m *maker) string {
		return func(m *maker) string {
			file := m.create(".qcow2", 8*mib, "compat="+compat)
			m.scatter(file, 8*mib, 64*kib, 30, writes)
			m.scatter(file, 8*mib, 64*kib, 15, ops...)
			return file
		}
	}
	return []*kind{
		{name: "v2", make: scattered(8*mib, 64*kib, "compat=0.10")},
		{name: "v3", make: scattered(8*mib, 64*kib, "compat=1.1")},
		{name: "v2-zero", make: only("0.10", zeroes, unmaps)},
		{name: "v2-discard", make: only("0.10", discards)},
		{name: "zero-plain", make: only("1.1", unmaps)},
		{name: "zero-alloc", make: only("1.1", zeroes)},
		{name: "discard", make: only("1.1", discards)},
	}
}

func clusterKinds() []*kind {
	var all []*kind
	for bits := 9; bits <= 21; bits++ {
		cluster := int64(1) << bits
		size := min(max(cluster*100, 2*mib), 64*mib)
		all = append(all, &kind{name: fmt.Sprint("cluster-", cluster), make: scattered(size, cluster)})
	}
	// More than one L2 table: 512 B clusters map 32 KiB a table, 4 KiB ones 2 MiB.
	return append(all,
		&kind{name: "v2-cluster-512", make: scattered(2*mib, 512, "compat=0.10")},
		&kind{name: "v2-cluster-2m", make: scattered(40*mib, 2*mib, "compat=0.10")})
}

func refcountKinds() []*kind {
	var all []*kind
	for bits := 1; bits <= 64; bits *= 2 {
		all = append(all, &kind{name: fmt.Sprint("refcount-", bits), make: scattered(4*mib, 16*kib, fmt.Sprint("refcount_bits=", bits))})
	}
	return all
}

func compressedKinds() []*kind {
	pack := func(size, cluster int64, rewrite bool, options ...string) func(m *maker) string {
		return func(m *maker) string {
			source := m.raw("-source.raw", size)
			m.scatter(source, size, cluster, 40, writes)
			file := m.file(".qcow2")
			options := append(options, fmt.Sprint("cluster_size=", cluster))
			m.run("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", strings.Join(options, ","), source, file)
			if rewrite {
				m.scatter(file, size, cluster, 15)
				at := m.rand.Int64N(size/cluster) * cluster
				m.io(file, "discard "+fmt.Sprint(at, cluster), strings.Replace(m.write(at, cluster), "write", "write -c", 1))
			}
			return file
		}
	}
	return []*kind{
		{name: "zlib", make: pack(16*mib, 64*kib, false)},
		{name: "zlib-v2", make: pack(8*mib, 64*kib, false, "compat=0.10")},
		{name: "zlib-512", make: pack(2*mib, 512, false)},
		{name: "zlib-2m", make: pack(64*mib, 2*mib, false)},
		{name: "zlib-rewritten", make: pack(8*mib, 64*kib, true)},
		{name: "zstd", make: pack(16*mib, 64*kib, false, "compression_type=zstd")},
		{name: "zstd-4k", make: pack(4*mib, 4*kib, false, "compression_type=zstd")},
		{name: "zstd-2m", make: pack(64*mib, 2*mib, false, "compression_type=zstd")},
		{name: "zstd-rewritten", make: pack(8*mib, 64*kib, true, "compression_type=zstd")},
		{name: "zlib-odd-end", make: pack(4*mib+5*512, 64*kib, false)},
		{name: "zlib-extended", make: pack(8*mib, 64*kib, true, "extended_l2=on")},
	}
}

func extendedKinds() []*kind {
	// Ranges are a few subclusters long: a 32nd of a cluster each.
	extended := func(size, cluster int64) func(m *maker) string {
		return func(m *maker) string {
			file := m.create(".qcow2", size, "extended_l2=on", fmt.Sprint("cluster_size=", cluster))
			m.scatter(file, size, cluster/32, 80)
			m.scatter(file, size, cluster, 10)
			return file
		}
	}
	return []*kind{
		{name: "extended-16k", make: extended(4*mib, 16*kib)},
		{name: "extended-64k", make: extended(8*mib, 64*kib)},
		{name: "extended-128k", make: extended(8*mib+3*512, 128*kib)},
		{name: "extended-2m", make: extended(64*mib, 2*mib)},
		{name: "extended-backing", make: func(m *maker) string {
			base := m.create("-base.qcow2", 3*mib, "extended_l2=on", "cluster_size=32k")
			m.scatter(base, 3*mib, kib, 60)
			top := m.overlay(".qcow2", base, 4*mib, "extended_l2=on", "cluster_size=64k")
			m.scatter(top, 4*mib, 2*kib, 60)
			return top
		}},
	}
}
