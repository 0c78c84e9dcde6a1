package main

import (
	"bytes"
	"fmt"
	"io"
	"math"
	"strconv"
	"time"
)

// print writes what qemu-img info does for people.
func (i *imageInfo) print(w io.Writer) error {
	var b bytes.Buffer
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("image: %s", i.Filename)
	line("file format: %s", i.Format)
	line("virtual size: %s (%d bytes)", size(i.VirtualSize), i.VirtualSize)
	line("disk size: %s", size(i.ActualSize))
	if i.Encrypted {
		line("encrypted: yes")
	}
	if i.ClusterSize != 0 {
		line("cluster_size: %d", i.ClusterSize)
	}
	if i.Dirty {
		line("cleanly shut down: no")
	}
	if i.Backing != "" {
		actual := ""
		if i.FullBacking != i.Backing {
			actual = " (actual path: " + printable(i.FullBacking) + ")"
		}
		line("backing file: %s%s", printable(i.Backing), actual)
		if i.BackingFormat != "" {
			line("backing file format: %s", printable(i.BackingFormat))
		}
	}
	if len(i.Snapshots) > 0 {
		line("Snapshot list:")
		line("%-10s%-17s%8s%20s%13s%11s", "ID", "TAG", "VM SIZE", "DATE", "VM CLOCK", "ICOUNT")
		for s := range i.Snapshots {
			line("%s", i.Snapshots[s].text())
		}
	}
	if i.Specific != nil {
		line("Format specific information:")
		i.Specific.Data.print(line)
	}
	if len(i.Graph) > 0 {
		line("graph, from the node upwards:")
		for n := range i.Graph {
			line("    %s", i.Graph[n].text())
		}
	}
	_, err := w.Write(b.Bytes())
	return err
}

func (s *snapshotInfo) text() string {
	icount := ""
	if s.ICount != nil {
		icount = strconv.FormatInt(*s.ICount, 10)
	}
	date := time.Unix(s.DateSec, 0).Format(time.DateTime)
	clock := fmt.Sprintf("%02d:%02d:%02d.%03d", s.VMClockSec/3600, s.VMClockSec/60%60, s.VMClockSec%60, s.VMClockNsec/1e6)
	return fmt.Sprintf("%-9s %-16s %8s%20s%13s%11s", printable(s.ID), printable(s.Name), size(s.VMStateSize), date, clock, icount)
}

func (q *qcow2Specific) print(line func(format string, args ...any)) {
	line("    compat: %s", q.Compat)
	line("    compression type: %s", q.CompressionType)
	printFlag(line, "lazy refcounts", q.LazyRefcounts)
	if len(q.Bitmaps) > 0 {
		line("    bitmaps:")
	}
	for i, b := range q.Bitmaps {
		line("        [%d]:", i)
		line("            flags:")
		for j, flag := range b.Flags {
			line("                [%d]: %s", j, flag)
		}
		line("            name: %s", printable(b.Name))
		line("            granularity: %d", b.Granularity)
	}
	line("    refcount bits: %d", q.RefcountBits)
	if q.Encrypt != nil {
		line("    encrypt:")
		line("        format: %s", q.Encrypt.Format)
	}
	if q.DataFile != "" {
		line("    data file: %s", printable(q.DataFile))
	}
	printFlag(line, "data file raw", q.DataFileRaw)
	printFlag(line, "corrupt", q.Corrupt)
	printFlag(line, "extended l2", q.ExtendedL2)
}

func printFlag(line func(format string, args ...any), name string, value *bool) {
	if value != nil {
		line("    %s: %v", name, *value)
	}
}

// size is QEMU's size_to_str: three digits and a binary unit.
func size(n int64) string {
	units := [...]string{"", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"}
	_, exp := math.Frexp(float64(n) / (1000.0 / 1024.0))
	unit := max(0, (exp-1)/10)
	return fmt.Sprintf("%.3g %sB", float64(n)/float64(int64(1)<<(10*unit)), units[unit])
}

// printable keeps text from an image from driving the terminal.
func printable(text string) string {
	out := make([]byte, 0, len(text))
	for _, r := range text {
		if strconv.IsPrint(r) {
			out = append(out, string(r)...)
			continue
		}
		quoted := strconv.QuoteRune(r)
		out = append(out, quoted[1:len(quoted)-1]...)
	}
	return string(out)
}
