package nbd_test

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/extentd/extentd/nbd"
	"github.com/extentd/extentd/storage/nbd/wire"
)

func goFor(name string, infos ...wire.Info) []byte {
	return wire.AppendGo(nil, &wire.GoRequest{Name: name, Infos: infos})
}

func metaFor(name string, queries ...string) []byte {
	return wire.AppendMeta(nil, &wire.MetaRequest{Name: name, Queries: queries})
}

func TestClientFlags(t *testing.T) {
	v := serve(t, setup{}, raw(t, "a.raw", random(512)))
	t.Run("unknown", func(t *testing.T) { v.dial(t, 1<<7).gone() })
	t.Run("unknown high", func(t *testing.T) { v.dial(t, 1<<16|bothFlags).gone() })
	t.Run("not fixed", func(t *testing.T) {
		c := v.dial(t, 0)
		c.write(wire.AppendOption(nil, wire.OptList, nil))
		c.gone()
	})
}

func TestExportName(t *testing.T) {
	content := random(1000)
	v := serve(t, setup{}, raw(t, "a.raw", content))
	for _, tt := range []struct {
		name   string
		flags  uint32
		export string
		padded bool
	}{
		{"fixed, no zeroes", bothFlags, "a.raw", false},
		{"fixed", uint32(wire.FlagFixedNewstyle), "a.raw", true},
		{"neither", 0, "a.raw", true},
		{"default", 0, "", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := v.dial(t, tt.flags)
			c.write(wire.AppendOption(nil, wire.OptExportName, []byte(tt.export)))
			info := wire.ParseExport(c.read(wire.ExportSize))
			if tt.padded && !bytes.Equal(c.read(wire.ExportPadding), make([]byte, wire.ExportPadding)) {
				t.Error("padding is not zeros")
			}
			if info.Size != 1000 || info.Flags&wire.HasFlags == 0 || info.Flags&wire.SendDF != 0 {
				t.Errorf("size %d, flags %#x", info.Size, info.Flags)
			}
			if got := c.readAt(0, 1000); !bytes.Equal(got, content) {
				t.Error("content differs")
			}
		})
	}
	for name, data := range map[string]string{"missing": "b.raw", "path": "../a.raw", "not UTF-8": "\xff", "long": strings.Repeat("a", wire.MaxString+1)} {
		t.Run(name, func(t *testing.T) {
			c := v.greet(t)
			c.write(wire.AppendOption(nil, wire.OptExportName, []byte(data)))
			c.gone()
		})
	}
	t.Run("after extended headers", func(t *testing.T) {
		c := v.greet(t)
		c.agree(extended)
		c.write(wire.AppendOption(nil, wire.OptExportName, []byte("a.raw")))
		c.gone()
	})
}

// TestOptions: each is refused as it should be, and the connection goes on.
func TestOptions(t *testing.T) {
	v := serve(t, setup{}, raw(t, "a.raw", random(4096)))
	huge := make([]byte, wire.MaxOption+1)
	for _, tt := range []struct {
		name   string
		option wire.Option
		data   []byte
		want   wire.OptionReply
	}{
		{"unknown", 77, nil, wire.RepErrUnsup},
		{"unknown with data", 1 << 30, []byte("abc"), wire.RepErrUnsup},
		{"unknown with much data", 78, huge, wire.RepErrUnsup},
		{"peek", 4, nil, wire.RepErrUnsup},
		{"list with data", wire.OptList, []byte{0}, wire.RepErrInvalid},
		{"structured with data", wire.OptStructuredReply, []byte{0}, wire.RepErrInvalid},
		{"extended with data", wire.OptExtendedHeaders, []byte{0}, wire.RepErrInvalid},
		{"TLS with data", wire.OptStartTLS, []byte{0}, wire.RepErrInvalid},
		{"no TLS here", wire.OptStartTLS, nil, wire.RepErrPolicy},
		{"go, no data", wire.OptGo, nil, wire.RepErrInvalid},
		{"go, name too long for its data", wire.OptGo, []byte{0, 0, 0, 9, 'a', 0, 0}, wire.RepErrInvalid},
		{"go, huge name", wire.OptGo, []byte{255, 255, 255, 255, 'a', 0, 0}, wire.RepErrInvalid},
		{"go, infos missing", wire.OptGo, append(goFor("a.raw")[:9], 0, 2, 0, 3), wire.RepErrInvalid},
		{"go, data left over", wire.OptGo, append(goFor("a.raw"), 0), wire.RepErrInvalid},
		{"go, NUL", wire.OptGo, goFor("a\x00.raw"), wire.RepErrInvalid},
		{"go, long name", wire.OptGo, goFor(strings.Repeat("a", wire.MaxString+1)), wire.RepErrInvalid},
		{"go, too much", wire.OptGo, huge, wire.RepErrTooBig},
		{"go, missing export", wire.OptGo, goFor("b.raw"), wire.RepErrUnknown},
		{"go, a path", wire.OptGo, goFor("../a.raw"), wire.RepErrUnknown},
		{"info, missing export", wire.OptInfo, goFor("b.raw"), wire.RepErrUnknown},
		{"info, unknown kinds", wire.OptInfo, goFor("a.raw", 99, 100), wire.RepAck},
		{"info, default", wire.OptInfo, goFor(""), wire.RepAck},
		{"set before structured", wire.OptSetMetaContext, metaFor("a.raw", wire.BaseAllocation), wire.RepErrInvalid},
		{"list before structured", wire.OptListMetaContext, metaFor("a.raw"), wire.RepErrInvalid},
		{"structured", wire.OptStructuredReply, nil, wire.RepAck},
		{"set, missing export", wire.OptSetMetaContext, metaFor("b.raw", wire.BaseAllocation), wire.RepErrUnknown},
		{"set, malformed", wire.OptSetMetaContext, metaFor("a.raw", "base:allocation")[:20], wire.RepErrInvalid},
		{"set, too many queries", wire.OptSetMetaContext, append(metaFor("a.raw")[:9], 255, 255, 255, 255), wire.RepErrInvalid},
		{"extended", wire.OptExtendedHeaders, nil, wire.RepAck},
		{"structured after extended", wire.OptStructuredReply, nil, wire.RepErrExtHeaderReqd},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := v.greet(t)
			if strings.HasPrefix(tt.name, "set, ") {
				c.agree(structured)
			}
			if strings.HasSuffix(tt.name, " after extended") {
				c.agree(extended)
			}
			c.want(tt.option, tt.data, tt.want)
			c.want(wire.OptInfo, goFor("a.raw"), wire.RepAck)
			c.want(wire.OptAbort, []byte("is ignored"), wire.RepAck)
			c.gone()
		})
	}
}

func TestOptionsThatEndIt(t *testing.T) {
	v := serve(t, setup{}, raw(t, "a.raw", random(512)))
	t.Run("magic", func(t *testing.T) {
		c := v.greet(t)
		p := wire.AppendOption(nil, wire.OptList, nil)
		p[0] ^= 1
		c.write(p)
		c.gone()
	})
	t.Run("length", func(t *testing.T) {
		c := v.greet(t)
		p := wire.AppendOption(nil, 99, nil)
		p[12] = 0xff
		c.write(p)
		c.gone()
	})
	t.Run("count", func(t *testing.T) {
		c := v.greet(t)
		p := wire.AppendOption(nil, 99, nil)
		go func() {
			for range wire.MaxOptions + 1 {
				if _, err := c.nc.Write(p); err != nil {
					return
				}
			}
		}()
		for range wire.MaxOptions {
			c.answers(99)
		}
		c.gone()
	})
}

func TestHandshakeTimeout(t *testing.T) {
	v := serve(t, setup{options: nbd.Options{HandshakeTimeout: 50 * time.Millisecond}}, raw(t, "a.raw", random(512)))
	v.greet(t).gone()
	c := v.greet(t)
	c.write([]byte("IHAVE"))
	c.gone()
	c = v.open(t, "a.raw", simple) // which may idle
	time.Sleep(200 * time.Millisecond)
	c.alive()
}

func TestList(t *testing.T) {
	v := serve(t, setup{}, raw(t, "b.raw", nil), raw(t, "a.raw", nil), raw(t, "bad.qcow2", []byte("no")), raw(t, "note.txt", nil))
	c := v.greet(t)
	var got []string
	for _, a := range c.want(wire.OptList, nil, wire.RepAck) {
		name, text, err := wire.ParseServer(a.data)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, name+" "+text)
	}
	if diff := cmp.Diff([]string{"a.raw raw image", "b.raw raw image"}, got); diff != "" {
		t.Error(diff)
	}
	c.want(wire.OptInfo, goFor(""), wire.RepErrUnknown) // there are two
	c.want(wire.OptGo, goFor("bad.qcow2"), wire.RepErrUnknown)
}

func TestInfo(t *testing.T) {
	v := serve(t, setup{}, raw(t, "a.raw", random(1000)))
	c := v.greet(t)
	got := map[wire.Info]string{}
	var e wire.ExportInfo
	for _, a := range c.want(wire.OptInfo, goFor("", wire.InfoName, wire.InfoDescription, wire.InfoBlockSize, 99), wire.RepAck) {
		kind, err := wire.ParseInfo(a.data, &e)
		if err != nil {
			t.Fatal(err)
		}
		got[kind] = string(a.data[2:])
	}
	if got[wire.InfoName] != "a.raw" || got[wire.InfoDescription] != "raw image" || len(got) != 4 {
		t.Errorf("%v", got)
	}
	want := wire.ExportInfo{Size: 1000, Minimum: 1, Preferred: 4096, Maximum: 32 << 20}
	want.Flags = wire.HasFlags | wire.SendFlush | wire.SendFUA | wire.SendTrim | wire.SendWriteZeroes | wire.CanMultiConn | wire.SendCache | wire.SendFastZero
	if diff := cmp.Diff(want, e); diff != "" {
		t.Error(diff)
	}
	c.agree(structured)
	c.choose("a.raw")
	if want.Flags |= wire.SendDF; c.info.Flags != want.Flags {
		t.Errorf("flags %#x, want %#x", c.info.Flags, want.Flags)
	}
}

func TestMetaContexts(t *testing.T) {
	v := serve(t, setup{}, raw(t, "a.raw", random(512)), raw(t, "b.raw", random(512)))
	both := []string{wire.BaseAllocation, wire.AllocationDepth}
	for _, tt := range []struct {
		name      string
		queries   []string
		list, set []string
	}{
		{"none", nil, both, nil},
		{"both", both, both, both},
		{"twice", []string{"base:allocation", "base:allocation"}, both[:1], both[:1]},
		{"wildcard", []string{"base:"}, both[:1], nil},
		{"the other wildcard", []string{"qemu:"}, both[1:], nil},
		{"unknown namespace", []string{"x-a:b", "nbd-server:"}, nil, nil},
		{"unknown leaf", []string{"base:other", "qemu:dirty-bitmap:a"}, nil, nil},
		{"no colon", []string{"base", ""}, nil, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := v.greet(t)
			c.agree(structured)
			list := names(t, c.want(wire.OptListMetaContext, metaFor("a.raw", tt.queries...), wire.RepAck))
			set := c.setContexts("a.raw", tt.queries...)
			if diff := cmp.Diff([][]string{tt.list, tt.set}, [][]string{list, set}); diff != "" {
				t.Error(diff)
			}
		})
	}
	status := wire.Request{Command: wire.CmdBlockStatus, Length: 512}
	for name, prepare := range map[string]func(c *client){
		"never set":        func(*client) {},
		"another export":   func(c *client) { c.setContexts("b.raw", both...) },
		"replaced by none": func(c *client) { c.setContexts("a.raw", both...); c.setContexts("a.raw") },
		"replaced by what failed": func(c *client) {
			c.setContexts("a.raw", both...)
			c.want(wire.OptSetMetaContext, metaFor("c.raw", both...), wire.RepErrUnknown)
		},
		"replaced by what is malformed": func(c *client) {
			c.setContexts("a.raw", both...)
			c.want(wire.OptSetMetaContext, []byte{1}, wire.RepErrInvalid)
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := v.greet(t)
			c.agree(structured)
			prepare(c)
			c.choose("a.raw")
			c.fails(wire.EINVAL, status, nil)
			c.alive()
		})
	}
}
