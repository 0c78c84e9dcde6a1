package test

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// fio runs a job of its nbd engine, and verifies what that writes.
func fio(t testing.TB, uri string, size int64, job string) {
	t.Helper()
	_, _, err := tool("fio", fioArgs(t, uri, size, job)...)
	must(t, err)
}

func fioArgs(t testing.TB, uri string, size int64, job string) []string {
	t.Helper()
	dir, err := os.MkdirTemp(scratch, "fio-") // it leaves files behind
	must(t, err)
	args := []string{"--name=x", "--ioengine=nbd", "--uri=" + uri, "--aux-path=" + dir, fmt.Sprint("--randseed=", *seed)}
	if !strings.Contains(job, "--size") {
		args = append(args, fmt.Sprint("--size=", size))
	}
	if !strings.Contains(job, "trim") {
		args = append(args, "--verify=crc32c", "--verify_fatal=1", "--verify_dump=0")
	}
	return append(args, strings.Fields(job)...)
}

// TestNBDFio has fio's engine write and verify what it wrote, at random and in
// order, with many requests in flight and over several connections.
func TestNBDFio(t *testing.T) {
	const size = 8 * mib
	for name, options := range map[string][]string{"raw": nil, "qcow2": {}, "512": {"cluster_size=512"}, "extended": {"extended_l2=on"}, "lazy": {"lazy_refcounts=on"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMaker(t, t.TempDir(), "fio")
			file := ""
			if options == nil {
				file = m.raw(".raw", size)
			} else {
				file = m.create(".qcow2", size, options...)
			}
			s := serveRacy(t, m.dir, overNBD()...)
			for _, job := range []string{
				"--rw=randwrite --bs=4k --iodepth=64 --io_size=4m --fsync=100",
				"--rw=write --bs=256k --iodepth=8",
				"--rw=randwrite --bsrange=512-64k --bs_unaligned=0 --blockalign=512 --iodepth=16 --io_size=4m --numjobs=3 --offset_increment=2m --size=2m",
				"--rw=randtrimwrite --bs=16k --iodepth=16 --io_size=4m",
			} {
				fio(t, s.uri(file), size, job)
			}
			s.stop()
			if options != nil {
				m.checkClean(t, file)
			}
		})
	}
}
