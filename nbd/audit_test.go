package nbd_test

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/extentd/extentd/audit"
	"github.com/extentd/extentd/auth"
	"github.com/extentd/extentd/nbd"
	"github.com/extentd/extentd/storage/nbd/wire"
)

// records collects those of an audit log.
type records struct {
	mu  sync.Mutex // protects all
	all []audit.Record
}

func (r *records) Write(p []byte) (int, error) {
	var rec audit.Record
	if err := json.Unmarshal(p, &rec); err != nil {
		return 0, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, rec)
	return len(p), nil
}

// expect waits for records, but for what differs each time.
func (r *records) expect(t *testing.T, want ...audit.Record) {
	t.Helper()
	eventually(t, "the records are there", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return len(r.all) >= len(want)
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.all {
		rec := &r.all[i]
		if rec.Time.IsZero() || rec.Remote == "" || rec.Protocol != "nbd" {
			t.Errorf("incomplete: %+v", rec)
		}
		r.all[i] = audit.Record{Caller: rec.Caller, Image: rec.Image, NBD: rec.NBD, Result: rec.Result}
	}
	if diff := cmp.Diff(want, r.all); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	r.all = nil
}

func auditLog(t *testing.T) (*audit.Log, *records) {
	t.Helper()
	all := new(records)
	log, err := audit.New(audit.Options{Writer: all})
	if err != nil {
		t.Fatal(err)
	}
	return log, all
}

// A connection that changed something is a record when it ends, with what it did.
func TestAuditOfChanges(t *testing.T) {
	log, all := auditLog(t)
	v := serve(t, setup{options: nbd.Options{Audit: log}, tcp: true}, raw(t, "a.raw", make([]byte, 1<<20)))
	c := v.open(t, "a.raw", structured)
	c.readAt(0, 4096)
	c.writeAt(make([]byte, 4096), 0)
	c.writeAt(make([]byte, 512), 8192)
	c.works(wire.Request{Command: wire.CmdWriteZeroes, Offset: 0, Length: 8192}, nil)
	c.works(wire.Request{Command: wire.CmdTrim, Offset: 0, Length: 1024}, nil)
	_ = c.nc.Close()
	anyone := audit.Caller{Kind: "anyone"}
	all.expect(t, audit.Record{Caller: anyone, Image: "a.raw", Result: audit.OK, NBD: &audit.NBD{
		Writes: 2, WrittenBytes: 4608, Zeros: 1, ZeroedBytes: 8192, Trims: 1, TrimmedBytes: 1024,
	}})
	failing := v.open(t, "a.raw", structured)
	failing.writeAt(make([]byte, 512), 0)
	failing.fails(wire.ENOSPC, wire.Request{Command: wire.CmdWrite, Offset: 2 << 20}, make([]byte, 512))
	_ = failing.nc.Close()
	all.expect(t, audit.Record{Caller: anyone, Image: "a.raw", Result: audit.Failed, NBD: &audit.NBD{Writes: 1, WrittenBytes: 512, Errors: 1}})
}

// So are those that may not do what they try.
func TestAuditOfRefusals(t *testing.T) {
	log, all := auditLog(t)
	server, client := certificates(t)
	var stranger atomic.Bool
	v := serve(t, setup{tcp: true, options: nbd.Options{
		TLS: server, RequireTLS: true, Audit: log, Logger: quiet.Logger,
		Identify: func([]*x509.Certificate) (*auth.Caller, error) {
			if stranger.Load() {
				return nil, errors.New("nobody knows the client")
			}
			return &auth.Caller{Kind: auth.KindCertificate, Name: "vm", Subject: "CN=client", Grants: auth.Grants{{Verbs: auth.Read, Images: []string{"a.raw"}}}}, nil
		},
	}}, raw(t, "a.raw", make([]byte, 1<<20)), raw(t, "b.raw", make([]byte, 1<<20)))
	vm := audit.Caller{Kind: "certificate", Name: "vm", Subject: "CN=client"}
	c := v.greet(t)
	c.secure(client)
	c.agree(structured)
	other := wire.GoRequest{Name: "b.raw"}
	for range 3 { // once
		c.want(wire.OptGo, wire.AppendGo(nil, &other), wire.RepErrUnknown)
	}
	all.expect(t, audit.Record{Caller: vm, Image: "b.raw", Result: audit.Refused})
	c.choose("a.raw")
	c.fails(wire.EPERM, wire.Request{Command: wire.CmdWrite}, bytes.Repeat([]byte{1}, 512))
	_ = c.nc.Close()
	all.expect(t, audit.Record{Caller: vm, Image: "a.raw", Result: audit.Refused, NBD: &audit.NBD{Errors: 1}})
	stranger.Store(true)
	unknown := v.greet(t)
	unknown.secure(client)
	_, _ = io.Copy(io.Discard, unknown.nc) // until the server has gone
	all.expect(t, audit.Record{Caller: audit.Caller{Kind: "unknown"}, Result: audit.Refused})
}

// Stats count what connections did, also those that are gone.
func TestStats(t *testing.T) {
	v := serve(t, setup{tcp: true, options: nbd.Options{MaxConnections: 2, Logger: quiet.Logger}}, raw(t, "a.raw", make([]byte, 1<<20)))
	a, b := v.open(t, "a.raw", structured), v.open(t, "a.raw", extended)
	a.readAt(0, 4096)
	b.readAt(0, 512)
	b.fails(wire.EINVAL, wire.Request{Command: wire.CmdRead, Offset: 1 << 20, Length: 512}, nil)
	b.fails(wire.EINVAL, wire.Request{Command: wire.Command(77)}, nil)
	for v.Stats().Refused == 0 {
		c, err := tryDial(v)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, c)
		_ = c.Close()
	}
	st := v.Stats()
	if st.Open != 2 || st.Connections != 2 || st.MaxMemory <= 0 || st.Memory < 0 || st.Memory > st.MaxMemory {
		t.Errorf("%+v", st)
	}
	_ = a.nc.Close()
	_ = b.nc.Close()
	eventually(t, "they are gone", func() bool { return v.Stats().Open == 0 })
	want := [nbd.Commands]nbd.CommandStats{}
	want[wire.CmdRead] = nbd.CommandStats{Requests: 3, Errors: 1, Bytes: 4608}
	want[nbd.Commands-1] = nbd.CommandStats{Requests: 1, Errors: 1}
	if diff := cmp.Diff(want, v.Stats().Commands); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func tryDial(v *server) (net.Conn, error) { return net.Dial(v.network, v.address) }
