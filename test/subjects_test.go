package test

import (
	"fmt"
	"strings"
)

// A subject is one sort of image that is written to.
type subject struct {
	name    string
	cluster int64                 // what ranges are made around
	make    func(m *maker) string // returns the image's file
	// fixed: guest offsets are node offsets, and there is nothing to allocate.
	fixed bool
	// v2 has no zero clusters, so that with a backing some updates cannot be.
	v2 bool
	// single: clusters cannot be shared, so that there are no snapshots.
	single bool
}

func (k *subject) format() string {
	if k.name == "raw" || k.name == "raw-odd" {
		return "raw"
	}
	return "qcow2"
}

// subjects are the images that the differential tests write to.
func subjects() []*subject {
	all := []*subject{
		{name: "raw", cluster: 4 * kib, fixed: true, single: true, make: func(m *maker) string { return m.raw(".raw", 4*mib) }},
		{name: "raw-odd", cluster: 4 * kib, fixed: true, single: true, make: func(m *maker) string { return m.raw(".raw", 2*mib+777) }},
		plain("v3", 64*kib, 4*mib),
		plain("odd-end", 64*kib, 2*mib+5*512),
		plain("lazy", 64*kib, 4*mib, "lazy_refcounts=on"),
		plain("preallocated", 64*kib, 4*mib, "preallocation=metadata"),
		plain("preallocated-full", 4*kib, mib, "preallocation=full"),
		plain("extended-16k", 16*kib, 2*mib, "extended_l2=on"),
		plain("extended", 64*kib, 4*mib, "extended_l2=on"),
		packedSubject("zlib", 64*kib),
		packedSubject("zstd", 4*kib, "compression_type=zstd"),
		packedSubject("zlib-extended", 16*kib, "extended_l2=on"),
	}
	for _, cluster := range []int64{512, 4 * kib, 2 * mib} {
		all = append(all, plain(fmt.Sprint("cluster-", cluster), cluster, min(max(mib, 8*cluster), 16*mib)))
	}
	for _, bits := range []int{2, 64} {
		all = append(all, plain(fmt.Sprint("refcount-", bits), 4*kib, 2*mib, fmt.Sprint("refcount_bits=", bits)))
	}
	narrow := plain("refcount-1", 4*kib, 2*mib, "refcount_bits=1")
	narrow.single = true
	all = append(all, narrow)
	for _, k := range []*subject{
		plain("v2", 64*kib, 4*mib, "compat=0.10"), plain("v2-512", 512, mib, "compat=0.10"),
		overSubject("v2-over", "raw", 64*kib, mib+512, 2*mib, "compat=0.10"),
	} {
		k.v2 = true
		all = append(all, k)
	}
	all = append(all,
		overSubject("over-raw", "raw", 64*kib, 2*mib, 2*mib),
		overSubject("over-qcow2", "qcow2", 4*kib, 2*mib, 2*mib),
		overSubject("over-short", "raw", 64*kib, mib+512, 3*mib),
		overSubject("over-long", "qcow2", 64*kib, 3*mib, 2*mib),
		overSubject("over-extended", "qcow2", 64*kib, 2*mib, 3*mib, "extended_l2=on"))
	for _, k := range []*subject{
		plain("data-file", 64*kib, 4*mib, "data_file=NAME-data.raw"),
		plain("data-file-4k", 4*kib, mib+512, "data_file=NAME-data.raw"),
		plain("data-file-raw", 64*kib, 4*mib, "data_file=NAME-data.raw", "data_file_raw=on"),
		plain("data-file-extended", 64*kib, 2*mib, "data_file=NAME-data.raw", "extended_l2=on"),
	} {
		k.fixed, k.single = true, true
		all = append(all, k)
	}
	return all
}

// plain is an image of its own, with changes all over it by QEMU.
func plain(name string, cluster, size int64, options ...string) *subject {
	return &subject{name: name, cluster: cluster, make: func(m *maker) string {
		options := append([]string{fmt.Sprint("cluster_size=", cluster)}, options...)
		for i := range options {
			options[i] = strings.ReplaceAll(options[i], "NAME", m.name)
		}
		file := m.create(".qcow2", size, options...)
		m.scatter(file, size, cluster, 8)
		return file
	}}
}

// packedSubject is a compressed image.
func packedSubject(name string, cluster int64, options ...string) *subject {
	return &subject{name: name, cluster: cluster, make: func(m *maker) string {
		source := m.raw("-source.raw", mib+5*512)
		m.scatter(source, mib, cluster, 20, writes)
		options := append([]string{fmt.Sprint("cluster_size=", cluster)}, options...)
		m.run("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", strings.Join(options, ","), source, m.file(".qcow2"))
		return m.file(".qcow2")
	}}
}

// overSubject is an image over another, of a format and a size.
func overSubject(name, format string, cluster, below, size int64, options ...string) *subject {
	return &subject{name: name, cluster: cluster, make: func(m *maker) string {
		var base string
		if format == "raw" {
			base = m.raw("-base.raw", below)
		} else {
			base = m.create("-base.qcow2", below, "cluster_size=4k")
		}
		m.scatter(base, below, cluster, 20)
		file := m.overlay(".qcow2", base, size, append(options, fmt.Sprint("cluster_size=", cluster))...)
		m.scatter(file, size, cluster, 5, writes, zeroes)
		return file
	}}
}
