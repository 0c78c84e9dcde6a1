package test

import "fmt"

func backingKinds() []*kind {
	// chain makes layers from the bottom up, the last one being the top.
	type layer struct {
		size, cluster int64 // cluster 0: raw
		options       []string
	}
	chain := func(layers ...layer) func(m *maker) string {
		return func(m *maker) string {
			var below string
			for i, l := range layers {
				suffix := fmt.Sprintf("-layer%d", i)
				if i == len(layers)-1 {
					suffix = ""
				}
				switch options := append(l.options, fmt.Sprint("cluster_size=", l.cluster)); {
				case l.cluster == 0:
					below = m.raw(suffix+".raw", l.size)
				case below == "":
					below = m.create(suffix+".qcow2", l.size, options...)
				default:
					below = m.overlay(suffix+".qcow2", below, l.size, options...)
				}
				ops := everything
				if len(l.options) > 0 && i > 0 { // v2 cannot discard over a backing file
					ops = []string{writes, writes, zeroes}
				}
				m.scatter(below, l.size, max(l.cluster, 4*kib), 20, ops...)
			}
			return below
		}
	}
	v2 := []string{"compat=0.10"}
	const c = 64 << 10
	return []*kind{
		{name: "over-raw", make: chain(layer{size: 4 * mib}, layer{size: 4 * mib, cluster: c})},
		{name: "over-short-raw", make: chain(layer{size: 2*mib + 512}, layer{size: 5 * mib, cluster: c})},
		{name: "over-odd-raw", oddBacking: 2*mib + 777, make: chain(layer{size: 2*mib + 777}, layer{size: 5 * mib, cluster: c})},
		{name: "over-long-raw", make: chain(layer{size: 6 * mib}, layer{size: 4*mib + 512, cluster: c})},
		{name: "over-qcow2", make: chain(layer{size: 4 * mib, cluster: c}, layer{size: 4 * mib, cluster: c})},
		{name: "over-short-qcow2", make: chain(layer{size: 2*mib + 1536, cluster: 4 * kib}, layer{size: 5 * mib, cluster: c})},
		{name: "over-long-qcow2", make: chain(layer{size: 6 * mib, cluster: 2 * kib}, layer{size: 3*mib + 512, cluster: c})},
		{name: "over-empty-qcow2", make: chain(layer{size: 512, cluster: c}, layer{size: 3 * mib, cluster: c})},
		{name: "v2-over-raw", make: chain(layer{size: 3 * mib}, layer{size: 4 * mib, cluster: c, options: v2})},
		{name: "v2-over-v2", make: chain(layer{size: 5 * mib, cluster: 512, options: v2}, layer{size: 4 * mib, cluster: c, options: v2})},
		{name: "three-layers", make: chain(layer{size: 3 * mib}, layer{size: 5 * mib, cluster: 4 * kib}, layer{size: 4 * mib, cluster: c})},
		{name: "five-layers", make: chain(
			layer{size: 3 * mib}, layer{size: 2 * mib, cluster: c}, layer{size: 6 * mib, cluster: 512},
			layer{size: 4*mib + 512, cluster: 2 * mib}, layer{size: 5 * mib, cluster: 4 * kib})},
		{name: "twenty-layers", make: func(m *maker) string {
			below := m.raw("-layer0.raw", mib)
			for i := 1; i < 20; i++ {
				below = m.overlay(fmt.Sprintf("-layer%d.qcow2", i), below, mib+int64(i%3)*64*kib, "cluster_size=4k")
				m.scatter(below, mib, 4*kib, 4)
			}
			return below
		}},
		{name: "over-compressed", make: func(m *maker) string {
			source := m.raw("-source.raw", 4*mib)
			m.scatter(source, 4*mib, 64*kib, 20, writes)
			base := m.file("-base.qcow2")
			m.run("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", "compression_type=zstd", source, base)
			top := m.overlay(".qcow2", base, 5*mib)
			m.scatter(top, 5*mib, 64*kib, 15)
			return top
		}},
		{name: "short-middle", make: func(m *maker) string {
			// What the middle layer hides past its end must not show.
			base := m.raw("-base.raw", 4*mib)
			m.io(base, m.write(0, 4*mib))
			middle := m.overlay("-middle.qcow2", base, mib+512)
			return m.overlay(".qcow2", middle, 4*mib)
		}},
	}
}

func dataFileKinds() []*kind {
	external := func(size int64, options ...string) func(m *maker) string {
		return func(m *maker) string {
			file := m.create(".qcow2", size, append(options, "data_file="+m.file("-data.raw"))...)
			m.scatter(file, size, 64*kib, 40)
			return file
		}
	}
	return []*kind{
		{name: "data-file", make: external(8 * mib)},
		{name: "data-file-4k", make: external(4*mib+512, "cluster_size=4k")},
		{name: "data-file-extended", make: external(4*mib, "extended_l2=on")},
		{name: "data-file-raw", make: external(8*mib, "data_file_raw=on")},
		{name: "data-file-raw-new", make: func(m *maker) string {
			return m.create(".qcow2", 4*mib, "data_file_raw=on", "data_file="+m.file("-data.raw"))
		}},
		{name: "data-file-backing", make: func(m *maker) string {
			base := m.create("-base.qcow2", 3*mib)
			m.scatter(base, 3*mib, 64*kib, 20)
			top := m.overlay(".qcow2", base, 4*mib, "data_file="+m.file("-data.raw"))
			m.scatter(top, 4*mib, 64*kib, 20)
			return top
		}},
		{name: "over-data-file", make: func(m *maker) string {
			base := m.create("-base.qcow2", 4*mib, "data_file="+m.file("-data.raw"))
			m.scatter(base, 4*mib, 64*kib, 20)
			top := m.overlay(".qcow2", base, 4*mib)
			m.scatter(top, 4*mib, 64*kib, 20)
			return top
		}},
	}
}

func preallocationKinds() []*kind {
	var all []*kind
	for _, mode := range []string{"off", "metadata", "falloc", "full"} {
		all = append(all,
			&kind{name: "preallocated-" + mode + "-new", make: func(m *maker) string {
				return m.create(".qcow2", 4*mib+512, "preallocation="+mode)
			}},
			&kind{name: "preallocated-" + mode, make: scattered(4*mib, 64*kib, "preallocation="+mode)},
		)
		if mode != "off" {
			all = append(all, &kind{name: "preallocated-" + mode + "-backing", make: func(m *maker) string {
				base := m.create("-base.qcow2", 2*mib)
				m.scatter(base, 2*mib, 64*kib, 20)
				top := m.overlay(".qcow2", base, 4*mib, "extended_l2=on", "preallocation="+mode)
				m.scatter(top, 4*mib, 2*kib, 40)
				return top
			}})
		}
	}
	return append(all, &kind{name: "preallocated-extended", make: scattered(4*mib, 64*kib, "extended_l2=on", "preallocation=metadata")})
}
