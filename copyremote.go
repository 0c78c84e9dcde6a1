package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/extentd/extentd/client"
	"github.com/extentd/extentd/client/transfer"
	"github.com/extentd/extentd/service"
)

// A remoteDisk is an image of a server as a source.
type remoteDisk struct {
	*transfer.Remote
	server *client.Server
	url    remoteURL
}

func (f *copyFlags) openRemoteSource(ctx context.Context, arg string) (copySource, error) {
	r, server, err := f.dialImage(arg)
	if err != nil {
		return nil, err
	}
	remote, err := transfer.NewRemote(ctx, server.Disk(r.image), f.allowChanges)
	if err != nil {
		server.Close()
		return nil, fmt.Errorf("%s: %w", r, err)
	}
	if f.changesOnly() {
		err = remote.Changes(ctx, f.since, f.dirty)
	} else {
		err = remote.Stream(ctx)
	}
	if err != nil {
		server.Close()
		return nil, fmt.Errorf("%s: %w", r, err)
	}
	return &remoteDisk{Remote: remote, server: server, url: r}, nil
}

// dialImage prepares to speak of the image that a URL names.
func (f *copyFlags) dialImage(arg string) (remoteURL, *client.Server, error) {
	r, err := parseRemote(arg)
	if err == nil && r.image == "" {
		err = fmt.Errorf("%s names a server and no image", r)
	}
	if err != nil {
		return r, nil, err
	}
	server, err := f.dial(r, f.connections)
	return r, server, err
}

func (d *remoteDisk) endpoint() transfer.Endpoint {
	return transfer.Endpoint{Name: d.url.String(), Size: d.Size(), Tag: d.Image().DataGeneration}
}

func (d *remoteDisk) close() error {
	d.server.Close()
	return nil
}

// A remoteTarget is an image of a server, which is written in place.
type remoteTarget struct {
	*transfer.RemoteTarget // nil until it is open
	f                      *copyFlags
	server                 *client.Server
	url                    remoteURL
	made                   bool // by this copy
}

func (f *copyFlags) planRemoteTarget(arg string) (copyTarget, error) {
	r, server, err := f.dialImage(arg)
	if err != nil {
		return nil, err
	}
	return &remoteTarget{f: f, server: server, url: r}, nil
}

func (t *remoteTarget) stateFile() string { return "" }

func (t *remoteTarget) endpoint() transfer.Endpoint {
	e := transfer.Endpoint{Name: t.url.String()}
	if t.RemoteTarget != nil {
		e.Size = t.Size()
	}
	return e
}

// create makes the image, or takes one that exists if it may be written over.
func (t *remoteTarget) create(ctx context.Context, size int64) error {
	disk := t.server.Disk(t.url.image)
	remote, err := transfer.NewRemote(ctx, disk, true)
	switch {
	case client.Kind(err) == "not-found" && !t.f.changesOnly():
		if err := t.make(ctx, size); err != nil {
			return fmt.Errorf("%s: %w", t.url, err)
		}
		t.made = true
		return t.reuse(ctx)
	case err != nil:
		return fmt.Errorf("%s: %w", t.url, err)
	case !t.f.force && !t.f.changesOnly():
		return fmt.Errorf("%s exists already: give --force to write over it", t.url)
	case remote.Image().ReadOnly:
		return fmt.Errorf("%s is read-only there", t.url)
	}
	t.RemoteTarget = remote.Target()
	return nil
}

// make asks the server for a new image.
func (t *remoteTarget) make(ctx context.Context, size int64) error {
	format, err := formatFor(t.url.image, t.f.targetFormat)
	if err != nil {
		return err
	}
	r, err := t.f.creation(format)
	if err != nil {
		return err
	}
	_, err = t.server.Create(ctx, imageCreation(t.url.image, size, &r))
	return err
}

// imageCreation is a request as the API wants it.
func imageCreation(name string, size int64, r *service.CreateRequest) client.ImageCreation {
	c := client.ImageCreation{
		Name: name, Format: client.ImageCreationFormat(r.Format), Size: &size,
		ClusterSize:     unlessZero(r.ClusterSize),
		RefcountBits:    unlessZero(r.RefcountBits),
		Compat:          unlessZero(client.ImageCreationCompat(r.Compat)),
		CompressionType: unlessZero(client.ImageCreationCompressionType(r.CompressionType)),
		Preallocation:   unlessZero(client.ImageCreationPreallocation(r.Preallocation)),
		ExtendedL2:      unlessZero(r.ExtendedL2),
		LazyRefcounts:   unlessZero(r.LazyRefcounts),
		DataFileRaw:     unlessZero(r.DataFileRaw),
	}
	return c
}

func unlessZero[T comparable](v T) *T {
	var zero T
	if v == zero {
		return nil
	}
	return &v
}

// reuse opens the image that is there.
func (t *remoteTarget) reuse(ctx context.Context) error {
	remote, err := transfer.NewRemote(ctx, t.server.Disk(t.url.image), true)
	if err != nil {
		return fmt.Errorf("%s: %w", t.url, err)
	}
	t.RemoteTarget = remote.Target()
	return nil
}

func (t *remoteTarget) isZero() bool { return t.made || t.f.targetIsZero }

func (t *remoteTarget) reopen(ctx context.Context) (copySource, error) {
	remote, err := transfer.NewRemote(ctx, t.server.Disk(t.url.image), false)
	if err != nil {
		return nil, err
	}
	return &remoteDisk{Remote: remote, server: t.server, url: t.url}, nil
}

func (t *remoteTarget) finish(context.Context, bool) error { return nil }

// discard deletes the image if this copy has made it.
func (t *remoteTarget) discard(ctx context.Context) error {
	if !t.made {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, client.DefaultDialTimeout)
	defer cancel()
	if err := t.server.Delete(ctx, t.url.image, ""); err != nil {
		return errors.Join(errors.New("the image that is not complete stays"), err)
	}
	return nil
}

func (t *remoteTarget) close() error {
	t.server.Close()
	return nil
}
