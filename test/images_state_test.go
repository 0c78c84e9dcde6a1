package test

import (
	"fmt"
	"strings"
)

func sizeKinds() []*kind {
	huge := func(cluster, size int64, windows ...window) *kind {
		return &kind{name: fmt.Sprint("huge-", cluster), windows: windows, make: func(m *maker) string {
			file := m.create(".qcow2", size, fmt.Sprint("cluster_size=", cluster))
			for _, w := range windows {
				var commands []string
				for range 6 {
					off, length := m.someRange(min(w.length, 16*mib), cluster/4)
					commands = append(commands, m.write(w.offset+off, length), fmt.Sprintf("write -z -u %d %d", w.offset+off+length/3, length/3))
				}
				m.io(file, commands...)
			}
			return file
		}}
	}
	return []*kind{
		{name: "empty", make: func(m *maker) string { return m.create(".qcow2", 0) }},
		{name: "unwritten", make: func(m *maker) string { return m.create(".qcow2", 3*mib) }},
		{name: "one-sector", make: scattered(512, 64*kib)},
		{name: "odd-sectors", make: scattered(3*mib+11*512, 64*kib)},
		{name: "odd-bytes", make: func(m *maker) string {
			// qemu-img rounds up what it creates, and down what it opens.
			file := m.create(".qcow2", 3*mib+1024)
			m.scatter(file, 3*mib+1024, 64*kib, 20)
			m.poke(file, 24, be64(uint64(3*mib+1000)))
			return file
		}},
		{name: "grown", make: func(m *maker) string {
			file := m.create(".qcow2", mib+512)
			m.scatter(file, mib+512, 64*kib, 20)
			m.run("qemu-img", "resize", "-q", file, fmt.Sprint(3*mib+1024))
			m.scatter(file, 3*mib+1024, 64*kib, 10)
			return file
		}},
		{name: "shrunk", make: func(m *maker) string {
			file := m.create(".qcow2", 4*mib)
			m.scatter(file, 4*mib, 64*kib, 30)
			m.run("qemu-img", "resize", "-q", "--shrink", file, fmt.Sprint(2*mib+1024))
			return file
		}},
		huge(512, 128*gib, window{0, 4 * mib}, window{100*gib - mib, 2 * mib}, window{128*gib - mib, mib}),
		huge(64*kib, 1024*1024*gib, window{0, 64 * mib}, window{700_000*gib - mib, 64 * mib}, window{1024*1024*gib - 16*mib, 16 * mib}),
		huge(2*mib, 2*eib, window{0, 64 * mib}, window{eib + 512*gib - 16*mib, 64 * mib}, window{2*eib - 64*mib, 64 * mib}),
	}
}

func stateKinds() []*kind {
	return []*kind{
		{name: "snapshots", make: func(m *maker) string {
			file := m.create(".qcow2", 8*mib)
			for i := range 4 {
				m.scatter(file, 8*mib, 64*kib, 15)
				m.run("qemu-img", "snapshot", "-c", fmt.Sprintf("snapshot %d", i), file)
			}
			m.run("qemu-img", "snapshot", "-d", "snapshot 1", file)
			m.scatter(file, 8*mib, 64*kib, 10)
			return file
		}},
		{name: "snapshot-reverted", make: func(m *maker) string {
			file := m.create(".qcow2", 4*mib, "cluster_size=512")
			m.scatter(file, 4*mib, 4*kib, 20)
			m.run("qemu-img", "snapshot", "-c", "a", file)
			m.scatter(file, 4*mib, 4*kib, 20)
			m.run("qemu-img", "snapshot", "-a", "a", file)
			return file
		}},
		{name: "bitmaps", make: func(m *maker) string {
			file := m.create(".qcow2", 8*mib)
			m.run("qemu-img", "bitmap", "--add", "-g", "64k", file, "coarse")
			m.scatter(file, 8*mib, 64*kib, 20)
			m.run("qemu-img", "bitmap", "--add", "-g", "512", file, "fine")
			m.run("qemu-img", "bitmap", "--disable", file, "coarse")
			m.scatter(file, 8*mib, 64*kib, 20)
			return file
		}},
		{name: "lazy-refcounts", make: scattered(4*mib, 64*kib, "lazy_refcounts=on")},
		{name: "dirty", make: func(m *maker) string {
			file := m.create(".qcow2", 4*mib, "lazy_refcounts=on")
			out, err := m.try("qemu-io", "-f", "qcow2", "-c", m.write(mib, 300*kib), "-c", "flush", "-c", "abort", file)
			if err == nil || m.peek(file, 79, 1)[0]&1 == 0 {
				m.t.Fatalf("the dirty bit is clear after an abort (%v)\n%s", err, out)
			}
			return file
		}},
		{name: "corrupt-bit", make: func(m *maker) string {
			file := m.create(".qcow2", 4*mib)
			m.scatter(file, 4*mib, 64*kib, 20)
			m.poke(file, 79, []byte{2}) // read-only opens are allowed
			return file
		}},
		{name: "unknown-autoclear", make: func(m *maker) string {
			file := m.create(".qcow2", 4*mib)
			m.scatter(file, 4*mib, 64*kib, 20)
			m.poke(file, 88, be64(1<<40))
			m.poke(file, 80, be64(1<<41)) // compatible
			return file
		}},
		{name: "amended", make: func(m *maker) string {
			file := m.create(".qcow2", 4*mib, "compat=0.10")
			m.scatter(file, 4*mib, 64*kib, 20)
			m.run("qemu-img", "amend", "-f", "qcow2", "-o", "compat=1.1,refcount_bits=8", file)
			m.scatter(file, 4*mib, 64*kib, 20)
			return file
		}},
		{name: "zero-cluster-runs", make: func(m *maker) string {
			// States that differ only in where their storage is.
			file := m.create(".qcow2", 4*mib)
			m.io(file, m.write(0, 2*mib), "write -z 0 512k", "discard 512k 512k", "write -z -u 1M 512k",
				"write -z 3M 512k", m.write(3*mib+128*kib, 64*kib))
			return file
		}},
	}
}

func rawKinds() []*kind {
	scattered := func(suffix string, size int64) func(m *maker) string {
		return func(m *maker) string {
			file := m.raw(suffix, size)
			m.scatter(file, size, 4*kib, 60)
			return file
		}
	}
	return []*kind{
		{name: "raw", make: scattered(".raw", 8*mib)},
		{name: "raw-img", make: scattered(".img", 2*mib)},
		{name: "raw-odd", make: scattered(".raw", 2*mib+123)},
		{name: "raw-tiny", make: func(m *maker) string {
			file := m.raw(".raw", 0)
			m.poke(file, 0, []byte("x"))
			return file
		}},
		{name: "raw-empty", make: func(m *maker) string { return m.raw(".raw", 0) }},
		{name: "raw-hole", make: func(m *maker) string { return m.raw(".raw", 2*mib) }},
		{name: "raw-dense", make: func(m *maker) string {
			file := m.raw(".raw", 4*mib)
			m.io(file, m.write(0, 4*mib))
			return file
		}},
		{name: "raw-allocated", make: func(m *maker) string {
			file := m.file(".raw")
			m.run("qemu-img", "create", "-q", "-f", "raw", "-o", "preallocation=falloc", file, fmt.Sprint(2*mib))
			m.io(file, m.write(mib, 100*kib))
			return file
		}},
		{name: "raw-with-qcow2-inside", make: func(m *maker) string {
			// A guest may write what it likes: this stays a raw disk.
			inner := m.create("-inner.qcow2", mib)
			m.io(inner, m.write(0, 200*kib))
			file := m.file(".raw")
			m.run("cp", inner, file)
			return file
		}},
	}
}

func encryptedKinds() []*kind {
	encrypted := func(format string, more ...string) func(m *maker) string {
		return func(m *maker) string {
			file := m.file(".qcow2")
			options := append([]string{"encrypt.format=" + format, "encrypt.key-secret=s"}, more...)
			create := []string{"create", "-q", "-f", "qcow2", "--object", secret, "-o", strings.Join(options, ","), file, "4M"}
			// QEMU times its key derivation first, and gives up at once where
			// the clock of its thread is too coarse.
			for range 30 {
				if out, err := m.try("qemu-img", create...); err == nil || !strings.Contains(out, "accurate CPU usage") {
					break
				}
			}
			opts := fmt.Sprintf("driver=qcow2,encrypt.format=%s,encrypt.key-secret=s,file.driver=file,file.filename=%s", format, file)
			m.run("qemu-io", "--object", secret, "--image-opts", "-c", m.write(mib+5*512, 300*kib), "-c", "write -z 2M 100k", opts)
			return file
		}
	}
	return []*kind{
		{name: "luks", unreadable: "encrypt.format=luks,encrypt.key-secret=s", make: encrypted("luks", "encrypt.iter-time=500")},
		{name: "aes", unreadable: "encrypt.format=aes,encrypt.key-secret=s", make: encrypted("aes")},
	}
}
