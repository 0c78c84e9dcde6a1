package client

import (
	"context"
	"fmt"
	"net/http"
)

// A Disk is an image of a server, by its name. Safe for concurrent use.
type Disk struct {
	server *Server
	name   string
	match  string // what If-Match says, "" for nothing
}

// Disk names an image. Nothing is asked.
func (s *Server) Disk(name string) *Disk { return &Disk{server: s, name: name} }

// Name is the image's.
func (d *Disk) Name() string { return d.name }

// Server is where it is.
func (d *Disk) Server() *Server { return d.server }

// IfMatch is the same image on condition that its data has an ETag (the data
// generation in quotes): what reads or writes data fails with the problem
// "precondition-failed" once somebody has written to it.
func (d *Disk) IfMatch(etag string) *Disk {
	return &Disk{server: d.server, name: d.name, match: etag}
}

// ETag is a generation as conditions want it.
func ETag(generation string) string { return `"` + generation + `"` }

// Describe says what the image is.
func (d *Disk) Describe(ctx context.Context) (*Image, error) {
	image := new(Image)
	resp, err := d.server.API.GetImage(ctx, d.name)
	if err == nil {
		err = decode(resp, image, http.StatusOK)
	}
	if err != nil {
		return nil, d.failed("describe", err)
	}
	return image, nil
}

// Check fails if the image cannot be read, or the condition does not hold.
func (d *Disk) Check(ctx context.Context) error {
	resp, err := d.server.API.HeadData(ctx, d.name, &HeadDataParams{IfMatch: optional(d.match)})
	if err == nil {
		err = done(resp, http.StatusOK)
	}
	if p, ok := err.(*Problem); ok && p.Status == http.StatusPreconditionFailed { //nolint:errorlint // it comes from here
		p.Type = "/problems/precondition-failed" // a HEAD has no body to say so
	}
	if err != nil {
		return d.failed("check", err)
	}
	return nil
}

// Resize sets the size in bytes. It shrinks only if that is wanted.
func (d *Disk) Resize(ctx context.Context, size int64, shrink bool) (*Image, error) {
	image := new(Image)
	patch := ImagePatch{Size: &size}
	if shrink {
		patch.Shrink = &shrink
	}
	resp, err := d.server.API.PatchImageWithApplicationMergePatchPlusJSONBody(ctx, d.name, &PatchImageParams{IfMatch: optional(d.match)}, patch)
	if err == nil {
		err = decode(resp, image, http.StatusOK)
	}
	if err != nil {
		return nil, d.failed(fmt.Sprintf("resize to %d bytes", size), err)
	}
	return image, nil
}

// failed says what was not possible, and where.
func (d *Disk) failed(what string, err error) error {
	return fmt.Errorf("image %s: %s: %w", d.name, what, err)
}
