package test

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/extentd/extentd/storage/nbd/wire"
)

// TestNBDRawClientFlags: flags that are unknown end the connection, and so does
// an option of a client that does not speak fixed newstyle.
func TestNBDRawClientFlags(t *testing.T) {
	s := rawServer(t, "raw")
	for _, flags := range []uint32{1 << 2, 1 << 15, 1 << 16, 1 << 31, ^uint32(0), usualFlags | 1<<7} {
		knock(t, s.nbd[0], flags).gone()
	}
	for _, flags := range []uint32{0, uint32(wire.FlagNoZeroes)} {
		c := knock(t, s.nbd[0], flags)
		c.put(wire.AppendOption(nil, wire.OptList, nil))
		c.gone()
	}
	c := knock(t, s.nbd[0], usualFlags)
	c.put(append(be64(0x4e42444d41474943), make([]byte, 8)...))
	c.gone() // that is no option's magic
}

// TestNBDRawExportName: the size and the flags, with padding unless both sides
// can do without; what cannot be had ends the connection.
func TestNBDRawExportName(t *testing.T) {
	s := rawServer(t, "raw", "qcow2")
	for _, flags := range []uint32{0, uint32(wire.FlagFixedNewstyle), uint32(wire.FlagNoZeroes), usualFlags} {
		c := knock(t, s.nbd[1], flags)
		c.put(wire.AppendOption(nil, wire.OptExportName, []byte("raw")))
		info := wire.ParseExport(c.take(wire.ExportSize))
		if info.Size != uint64(shellSize) || info.Flags&wire.HasFlags == 0 || info.Flags&wire.SendDF != 0 {
			t.Errorf("flags %#x: %+v", flags, info)
		}
		if flags&uint32(wire.FlagNoZeroes) == 0 && !bytes.Equal(c.take(wire.ExportPadding), make([]byte, wire.ExportPadding)) {
			t.Errorf("flags %#x: the padding is not zeros", flags)
		}
		c.alive()
	}
	for _, name := range []string{"missing", "", strings.Repeat("x", 4096), strings.Repeat("x", 4097), strings.Repeat("x", 70000), "raw\x00", "\xff\xfe"} {
		c := knock(t, s.nbd[1], usualFlags)
		c.put(wire.AppendOption(nil, wire.OptExportName, []byte(name)))
		c.gone()
	}
}

// TestNBDRawDefaultExport: the empty name is that of the only export.
func TestNBDRawDefaultExport(t *testing.T) {
	m := newMaker(t, t.TempDir(), "default")
	makeShellKinds(t, m)
	s := serveConfig(t, m.dir, "images: [{name: only, format: raw, node: {file: {path: all.raw}}}]", "--nbd", "127.0.0.1:0")
	eachDialect(t, func(t *testing.T, d dialect) {
		c := knock(t, s.nbd[0], usualFlags).speak(d)
		if d != simpleReplies {
			c.set("", wire.BaseAllocation)
		}
		var name string
		for _, a := range c.want(wire.OptGo, goOf("", wire.InfoName), wire.RepAck) {
			if kind, err := wire.ParseInfo(a.data, &c.info); err != nil {
				t.Fatal(err)
			} else if kind == wire.InfoName {
				name = string(a.data[2:])
			}
		}
		if name != "only" {
			t.Errorf("the default export is called %q", name)
		}
		c.alive()
		if d != simpleReplies {
			c.call(wire.Request{Command: wire.CmdBlockStatus, Length: 4096}, nil, 0)
		}
	})
	c := knock(t, s.nbd[0], usualFlags)
	c.put(wire.AppendOption(nil, wire.OptExportName, nil))
	c.take(wire.ExportSize)
	c.alive()
}

// brokenGo is data of GO and INFO that is malformed.
func brokenGo() map[string][]byte {
	whole := goOf("raw", wire.InfoName, wire.InfoBlockSize)
	return map[string][]byte{
		"empty":                  {},
		"half a length":          {0, 0},
		"a length alone":         {0, 0, 0, 3},
		"no count":               append(be32(3), "raw"...),
		"a name beyond the data": append(be32(100), "raw\x00\x00"...),
		"the longest name":       append(be32(^uint32(0)), "raw\x00\x00"...),
		"a name up to the end":   append(be32(5), "raw\x00\x00"...),
		"too few infos":          whole[:len(whole)-2],
		"half an info":           whole[:len(whole)-1],
		"too many infos":         append(slices.Clone(whole), 0, 1),
		"65,535 infos":           append(append(be32(3), "raw"...), 0xff, 0xff),
		"a long name":            goOf(strings.Repeat("x", 4097)),
		"no UTF-8":               goOf("r\xffw"),
		"half a rune":            goOf("raw\xe2\x82"),
		"a surrogate":            goOf("\xed\xa0\x80"),
		"NUL":                    goOf("raw\x00"),
	}
}

// brokenMeta is data of LIST_META_CONTEXT and SET_META_CONTEXT that is malformed.
func brokenMeta() map[string][]byte {
	whole := metaOf("raw", wire.BaseAllocation)
	return map[string][]byte{
		"empty":                   {},
		"a name beyond the data":  append(be32(100), "raw\x00\x00\x00\x00"...),
		"no count":                append(be32(3), "raw"...),
		"a query that is missing": append(append(be32(3), "raw"...), be32(1)...),
		"a query that is short":   whole[:len(whole)-1],
		"too much":                append(slices.Clone(whole), 0),
		"2^32-1 queries":          append(append(be32(3), "raw"...), be32(^uint32(0))...),
		"a query of 2^32-1":       slices.Concat(be32(3), []byte("raw"), be32(1), be32(^uint32(0)), []byte("base:")),
		"a long name":             metaOf(strings.Repeat("x", 4097)),
		"a long query":            metaOf("raw", "base:"+strings.Repeat("x", 4092)),
		"no UTF-8 in the name":    metaOf("r\xffw", wire.BaseAllocation),
		"no UTF-8 in a query":     metaOf("raw", "base:\xff"),
		"NUL in a query":          metaOf("raw", "base:allocation\x00"),
	}
}

// TestNBDRawBrokenOptions: what is malformed is ERR_INVALID, what is unknown is
// ERR_UNSUP, and the negotiation goes on after it.
func TestNBDRawBrokenOptions(t *testing.T) {
	s := rawServer(t, "raw")
	c := knock(t, s.nbd[1], usualFlags).speak(structuredReplies)
	for _, o := range []wire.Option{0, 4, 12, 13, 1000, 1 << 31, 1<<32 - 1} {
		for _, n := range []int{0, 1, 4096, 70000, 200000} {
			c.want(o, make([]byte, n), wire.RepErrUnsup)
		}
	}
	for _, o := range []wire.Option{wire.OptList, wire.OptStructuredReply, wire.OptExtendedHeaders} {
		c.want(o, []byte{0}, wire.RepErrInvalid)
		c.want(o, make([]byte, 65536), wire.RepErrInvalid)
	}
	for _, data := range [][]byte{nil, {0}} {
		c.want(wire.OptStartTLS, data, wire.RepErrPolicy, wire.RepErrUnsup, wire.RepErrInvalid)
	}
	for _, o := range []wire.Option{wire.OptInfo, wire.OptGo} {
		for what, data := range brokenGo() {
			t.Log(o, what)
			c.want(o, data, wire.RepErrInvalid)
		}
		c.want(o, goOf(strings.Repeat("x", 4096)), wire.RepErrUnknown)
		c.want(o, goOf("missing", wire.InfoBlockSize), wire.RepErrUnknown)
	}
	for _, o := range []wire.Option{wire.OptListMetaContext, wire.OptSetMetaContext} {
		for what, data := range brokenMeta() {
			t.Log(o, what)
			c.want(o, data, wire.RepErrInvalid)
		}
		if a := c.want(o, metaOf("raw", "no colon"), wire.RepErrInvalid, wire.RepAck); len(a) > 0 {
			t.Errorf("a query without a colon finds %v", a)
		}
		c.want(o, metaOf("missing", wire.BaseAllocation), wire.RepErrUnknown)
	}
	c.choose("raw").alive()
}

// TestNBDRawBounds: how long an option may be, and how many there may be.
func TestNBDRawBounds(t *testing.T) {
	s := rawServer(t, "raw")
	c := knock(t, s.nbd[1], usualFlags)
	for _, o := range []wire.Option{wire.OptGo, wire.OptInfo, wire.OptSetMetaContext, wire.OptListMetaContext} {
		c.want(o, make([]byte, 300000), wire.RepErrTooBig, wire.RepErrInvalid)
	}
	c.choose("raw").alive()

	c = knock(t, s.nbd[1], usualFlags)
	c.put(slices.Concat(be64(wire.OptionMagic), be32(uint32(wire.OptGo)), be32(^uint32(0))))
	c.gone()

	c = knock(t, s.nbd[1], usualFlags)
	go func() {
		many := bytes.Repeat(wire.AppendOption(nil, 99, nil), 1000)
		for range 100 {
			if c.write(many) != nil {
				return
			}
		}
	}()
	n, err := io.Copy(io.Discard, c.conn)
	if err != nil && !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) || n > 50000*60 {
		t.Errorf("100,000 options were answered with %d bytes: %v", n, err)
	}
}

// TestNBDRawInfo: which pieces of information there are, and how long they are.
func TestNBDRawInfo(t *testing.T) {
	s := rawServer(t, "qcow2", "policy")
	lengths := map[wire.Info]int{wire.InfoExport: 12, wire.InfoBlockSize: 14, wire.InfoName: 2 + len("qcow2")}
	c := knock(t, s.nbd[0], usualFlags)
	for _, asked := range [][]wire.Info{
		{},
		{wire.InfoExport},
		{wire.InfoBlockSize},
		{wire.InfoName},
		{wire.InfoDescription},
		{99, 0xffff, wire.InfoName, 4},
		{wire.InfoExport, wire.InfoName, wire.InfoDescription, wire.InfoBlockSize},
	} {
		told := make(map[wire.Info][]byte)
		for range 2 { // the same each time
			again := make(map[wire.Info][]byte)
			for _, a := range c.want(wire.OptInfo, goOf("qcow2", asked...), wire.RepAck) {
				kind, err := wire.ParseInfo(a.data, &c.info)
				if err != nil || a.reply != wire.RepInfo || again[kind] != nil {
					t.Fatalf("%v: %#x %q: %v", asked, uint32(a.reply), a.data, err)
				}
				if n := lengths[kind]; n != 0 && len(a.data) != n {
					t.Errorf("information %d has %d bytes", kind, len(a.data))
				}
				again[kind] = a.data
			}
			if len(told) > 0 && !maps.EqualFunc(told, again, bytes.Equal) {
				t.Errorf("%v: first %v, then %v", asked, told, again)
			}
			told = again
		}
		for _, kind := range append(slices.Clone(asked), wire.InfoExport) {
			if kind <= wire.InfoBlockSize && told[kind] == nil {
				t.Errorf("asked for %v, information %d is missing", asked, kind)
			}
		}
	}
	c.want(wire.OptInfo, goOf("policy", wire.InfoBlockSize), wire.RepAck)
	c.choose("policy")
	if i := c.info; i.Minimum != 4096 || i.Preferred != 64<<10 || i.Maximum != 128<<10 || i.Flags&wire.BlockStatusPayload != 0 {
		t.Errorf("%+v", i)
	}
}

// TestNBDRawMetaContexts: they need structured replies, are bound to an export's
// name, and each option replaces those of the one before it, also when it fails.
func TestNBDRawMetaContexts(t *testing.T) {
	s := rawServer(t, "raw", "qcow2")
	base, depth := wire.BaseAllocation, wire.AllocationDepth
	c := knock(t, s.nbd[0], usualFlags)
	c.want(wire.OptSetMetaContext, metaOf("raw", base), wire.RepErrInvalid)
	c.want(wire.OptListMetaContext, metaOf("raw"), wire.RepErrInvalid, wire.RepAck)
	for name, test := range map[string]struct {
		agree func(c *rawNBD)
		want  []string
	}{
		"the last counts":          {func(c *rawNBD) { c.set("raw", base); c.set("raw", depth) }, []string{depth}},
		"no query":                 {func(c *rawNBD) { c.set("raw", base, depth); c.set("raw") }, nil},
		"none that is known":       {func(c *rawNBD) { c.set("raw", base); c.set("raw", "x-a:b") }, nil},
		"another export":           {func(c *rawNBD) { c.set("qcow2", base) }, nil},
		"another export, and back": {func(c *rawNBD) { c.set("qcow2", base); c.set("raw", base, depth) }, []string{base, depth}},
		"twice the same":           {func(c *rawNBD) { c.set("raw", base, base) }, []string{base}},
		"a missing export": {func(c *rawNBD) {
			c.set("raw", base)
			c.want(wire.OptSetMetaContext, metaOf("missing", base), wire.RepErrUnknown)
			clear(c.contexts)
		}, nil},
		"a malformed option": {func(c *rawNBD) {
			c.set("raw", base)
			c.want(wire.OptSetMetaContext, []byte{1}, wire.RepErrInvalid)
			clear(c.contexts)
		}, nil},
		"an option that is too long": {func(c *rawNBD) {
			c.set("raw", base)
			c.want(wire.OptSetMetaContext, make([]byte, 200000), wire.RepErrTooBig, wire.RepErrInvalid)
			clear(c.contexts)
		}, nil},
		"a listing changes nothing": {func(c *rawNBD) {
			c.set("raw", base)
			if a := c.want(wire.OptListMetaContext, metaOf("qcow2"), wire.RepAck); len(a) != 2 {
				t.Errorf("the listing is %v", a)
			}
			c.want(wire.OptInfo, goOf("qcow2"), wire.RepAck)
			c.want(wire.OptGo, goOf("missing"), wire.RepErrUnknown)
		}, []string{base}},
	} {
		for _, d := range []dialect{structuredReplies, extendedHeaders} {
			t.Run(name+"/"+d.String(), func(t *testing.T) {
				c := knock(t, s.nbd[0], usualFlags).speak(d)
				test.agree(c)
				c.choose("raw")
				if payload := c.info.Flags&wire.BlockStatusPayload != 0; payload && d != extendedHeaders {
					t.Error("a payload of block status without extended headers")
				}
				r := wire.Request{Command: wire.CmdBlockStatus, Length: 4096}
				if len(test.want) == 0 {
					c.call(r, nil, wire.EINVAL)
				} else {
					var got []string
					for id := range c.call(r, nil, 0).status {
						got = append(got, c.contexts[id])
					}
					slices.Sort(got)
					if !slices.Equal(got, test.want) {
						t.Errorf("status of %q, want %q", got, test.want)
					}
				}
				c.alive()
			})
		}
	}
}

// TestNBDRawOrder: options that come once too often, or one after the other
// without waiting.
func TestNBDRawOrder(t *testing.T) {
	s := rawServer(t, "raw")
	c := knock(t, s.nbd[1], usualFlags).speak(structuredReplies).speak(structuredReplies).speak(extendedHeaders)
	c.want(wire.OptStructuredReply, nil, wire.RepErrExtHeaderReqd)
	c.speak(extendedHeaders).choose("raw").alive()

	c = knock(t, s.nbd[1], uint32(wire.FlagFixedNewstyle)) // after GO there is no padding
	c.choose("raw").alive()

	c = knock(t, s.nbd[1], usualFlags)
	c.put(slices.Concat(
		wire.AppendOption(nil, wire.OptStructuredReply, nil),
		wire.AppendOption(nil, wire.OptAbort, []byte("ignored")),
		wire.AppendOption(nil, wire.OptList, nil),
	))
	rest, err := io.ReadAll(c.conn)
	want := wire.AppendOptionReply(wire.AppendOptionReply(nil, wire.OptStructuredReply, wire.RepAck, nil), wire.OptAbort, wire.RepAck, nil)
	if !bytes.Equal(rest, want) || err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("after ABORT: %q, %v", rest, err)
	}
}

// TestNBDRawShutdown: while the server is stopping, options are ERR_SHUTDOWN, but
// ABORT is not, and what is under way is answered.
func TestNBDRawShutdown(t *testing.T) {
	s := rawServer(t, "slow")
	asking, leaving := knock(t, s.nbd[0], usualFlags), knock(t, s.nbd[0], usualFlags)
	working := enter(t, s.nbd[1], "slow", structuredReplies)
	working.call(wire.Request{Command: wire.CmdWrite, Length: 512}, shellContent()[:512], 0)
	working.ask(wire.Request{Command: wire.CmdFlush, Cookie: 7}, nil)
	working.ask(wire.Request{Command: wire.CmdRead, Length: 512, Cookie: 8}, nil)
	if r := working.answer(); r.cookie != 8 || r.errno != 0 {
		t.Fatalf("the flush is to take long: %+v", r)
	}
	must(t, s.cmd.Process.Signal(syscall.SIGTERM))
	for refused := false; !refused; time.Sleep(5 * time.Millisecond) {
		all, err := asking.option(wire.OptInfo, goOf("slow"))
		must(t, err)
		refused = all[len(all)-1].reply == wire.RepErrShutdown
	}
	asking.want(wire.OptGo, goOf("slow"), wire.RepErrShutdown)
	asking.want(wire.OptList, nil, wire.RepErrShutdown)
	leaving.want(wire.OptAbort, nil, wire.RepAck)
	leaving.gone()
	if r := working.answer(); r.cookie != 7 || r.errno != 0 {
		t.Errorf("the flush under way: %+v", r)
	}
	working.gone()
	asking.gone()
	if err := <-s.exited; err != nil { // another signal would end it at once
		t.Errorf("extentd after SIGTERM: %v", err)
	}
	s.exited = nil
}
