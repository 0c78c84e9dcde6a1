package test

import (
	"bytes"
	"errors"
	"net"
	"net/url"
	"slices"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/extentd/extentd/storage/nbd/wire"
)

// A rawNBD sends what libnbd does not: broken messages, options in any order,
// extended headers. What it gets back must be right.
type rawNBD struct {
	*nbdClient
	t testing.TB
}

// knock connects to a URI and answers the greeting with the flags.
func knock(t testing.TB, uri string, flags uint32) *rawNBD {
	t.Helper()
	u, err := url.Parse(uri)
	must(t, err)
	network, address := "tcp", u.Host
	if socket := u.Query().Get("socket"); socket != "" {
		network, address = "unix", socket
	}
	conn, err := net.Dial(network, address)
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	must(t, conn.SetDeadline(time.Now().Add(time.Minute)))
	c := &rawNBD{&nbdClient{conn: conn, pending: map[uint64]*nbdReply{}, contexts: map[uint32]string{}}, t}
	offered, err := wire.ParseGreeting(c.take(wire.GreetingSize))
	if err != nil || offered != wire.FlagFixedNewstyle|wire.FlagNoZeroes {
		t.Fatalf("the greeting has flags %#x: %v", offered, err)
	}
	c.put(wire.AppendClientFlags(nil, flags))
	return c
}

const usualFlags = uint32(wire.FlagFixedNewstyle | wire.FlagNoZeroes)

func (c *rawNBD) take(n int) []byte {
	c.t.Helper()
	p, err := c.read(n)
	must(c.t, err)
	return p
}

func (c *rawNBD) put(p []byte) {
	c.t.Helper()
	must(c.t, c.write(p))
}

// gone wants the server to have closed the connection without another word.
func (c *rawNBD) gone() {
	c.t.Helper()
	n, err := c.conn.Read(make([]byte, 1))
	var timeout net.Error
	if n > 0 || err == nil || errors.As(err, &timeout) && timeout.Timeout() {
		c.t.Fatalf("the connection is open still: %d bytes, %v", n, err)
	}
}

// want sends an option whose last answer must be one of those given. It returns
// the answers before it.
func (c *rawNBD) want(o wire.Option, data []byte, finals ...wire.OptionReply) []optionAnswer {
	c.t.Helper()
	all, err := c.option(o, data)
	must(c.t, err)
	end := all[len(all)-1]
	if !slices.Contains(finals, end.reply) {
		c.t.Fatalf("option %d with %d bytes: %#x (%s), want %#x", o, len(data), uint32(end.reply), end.data, finals)
	}
	if end.reply == wire.RepAck && len(end.data) > 0 || !utf8.Valid(end.data) || len(end.data) > wire.MaxString {
		c.t.Fatalf("option %d: the last answer has data %q", o, end.data)
	}
	return all[:len(all)-1]
}

// A dialect is how a client wants replies.
type dialect int

const (
	simpleReplies dialect = iota
	structuredReplies
	extendedHeaders
)

func (d dialect) String() string { return [...]string{"simple", "structured", "extended"}[d] }

// speak agrees on a dialect.
func (c *rawNBD) speak(d dialect) *rawNBD {
	c.t.Helper()
	switch d {
	case structuredReplies:
		c.want(wire.OptStructuredReply, nil, wire.RepAck)
	case extendedHeaders:
		c.want(wire.OptExtendedHeaders, nil, wire.RepAck)
	}
	c.structured, c.extended = d != simpleReplies, d == extendedHeaders
	return c
}

// set agrees on metadata contexts, and returns their names in order.
func (c *rawNBD) set(export string, queries ...string) []string {
	c.t.Helper()
	clear(c.contexts)
	var names []string
	for _, a := range c.want(wire.OptSetMetaContext, metaOf(export, queries...), wire.RepAck) {
		id, name, err := wire.ParseMetaContext(a.data)
		if err != nil || a.reply != wire.RepMetaContext || c.contexts[id] != "" {
			c.t.Fatalf("answer %#x %q: %v", uint32(a.reply), a.data, err)
		}
		c.contexts[id] = name
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func metaOf(export string, queries ...string) []byte {
	return wire.AppendMeta(nil, &wire.MetaRequest{Name: export, Queries: queries})
}

func goOf(export string, infos ...wire.Info) []byte {
	return wire.AppendGo(nil, &wire.GoRequest{Name: export, Infos: infos})
}

// choose enters the transmission phase.
func (c *rawNBD) choose(export string) *rawNBD {
	c.t.Helper()
	for _, a := range c.want(wire.OptGo, goOf(export, wire.InfoBlockSize), wire.RepAck) {
		_, err := wire.ParseInfo(a.data, &c.info)
		must(c.t, err)
	}
	return c
}

// enter connects and chooses an export in a dialect, with all contexts that it
// can have.
func enter(t testing.TB, uri, export string, d dialect) *rawNBD {
	t.Helper()
	c := knock(t, uri, usualFlags).speak(d)
	if d != simpleReplies {
		c.set(export, wire.BaseAllocation, wire.AllocationDepth)
	}
	return c.choose(export)
}

// ask sends a request as it is, with the cookie that it has, and a payload of any
// length.
func (c *rawNBD) ask(r wire.Request, payload []byte) {
	c.t.Helper()
	reply := &nbdReply{cookie: r.Cookie, off: r.Offset, status: map[uint32][]wire.Descriptor{}}
	if r.Command == wire.CmdRead {
		reply.data = bytes.Repeat([]byte{0xa5}, int(min(r.Length, uint64(2*mib))))
	}
	c.pending[r.Cookie] = reply
	c.put(append(c.header(r), payload...))
}

func (c *rawNBD) header(r wire.Request) []byte {
	p := make([]byte, wire.ExtRequestSize)
	if !c.extended {
		p = p[:wire.RequestSize]
	}
	wire.PutRequest(p, &r, c.extended)
	return p
}

// answer is the next reply, which is well-formed.
func (c *rawNBD) answer() *nbdReply {
	c.t.Helper()
	r, err := c.receive()
	must(c.t, err)
	switch r.errno {
	case 0:
		if r.covered != len(r.data) {
			c.t.Fatalf("%d bytes of %d came", r.covered, len(r.data))
		}
	case wire.EPERM, wire.EIO, wire.ENOMEM, wire.EINVAL, wire.ENOSPC, wire.EOVERFLOW, wire.ENOTSUP, wire.ESHUTDOWN:
	default:
		c.t.Fatalf("an error that there is not: %d", r.errno)
	}
	if !wire.ValidString([]byte(r.text)) || bytes.Contains([]byte(r.text), []byte("/")) {
		c.t.Fatalf("an error's text is %q", r.text)
	}
	return r
}

// call sends a request and wants an answer with one of the errors.
func (c *rawNBD) call(r wire.Request, payload []byte, errnos ...wire.Errno) *nbdReply {
	c.t.Helper()
	c.cookie++
	r.Cookie = c.cookie
	c.ask(r, payload)
	reply := c.answer()
	if reply.cookie != r.Cookie || !slices.Contains(errnos, reply.errno) {
		c.t.Fatalf("%+v: %v (%s), want %v", r, reply.errno, reply.text, errnos)
	}
	return reply
}

// alive wants the connection to go on, and the image to be as it was.
func (c *rawNBD) alive() {
	c.t.Helper()
	want := shellContent()
	r := c.call(wire.Request{Command: wire.CmdRead, Length: uint64(shellSize)}, nil, 0)
	if i := firstDifference(r.data, want); i >= 0 {
		c.t.Fatalf("byte %d differs", i)
	}
}

// eachDialect runs a test in all dialects.
func eachDialect(t *testing.T, test func(t *testing.T, d dialect)) {
	for d := simpleReplies; d <= extendedHeaders; d++ {
		t.Run(d.String(), func(t *testing.T) { test(t, d) })
	}
}

// rawServer serves images of the kinds, which have the kinds' names.
func rawServer(t *testing.T, kinds ...string) *server {
	t.Helper()
	images := make(map[string]string)
	for _, kind := range kinds {
		images[kind] = kind
	}
	return serveShell(t, newMaker(t, t.TempDir(), "nbd"), images)
}
