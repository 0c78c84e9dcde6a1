package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/http"
	"github.com/extentd/extentd/storage/mem"
	"github.com/extentd/extentd/storage/nbd"
	"github.com/extentd/extentd/storage/null"
)

// nodeKinds are the protocol nodes of this build.
func nodeKinds() map[string]func() nodeOptions {
	return map[string]func() nodeOptions{
		"file": func() nodeOptions { return new(fileNode) },
		"http": func() nodeOptions { return new(httpNode) },
		"mem":  func() nodeOptions { return new(memNode) },
		"nbd":  func() nodeOptions { return new(nbdNode) },
		"null": func() nodeOptions { return new(nullNode) },
	}
}

type fileNode struct {
	Path   hostPath `json:"path,omitempty" validate:"required"`
	Direct bool     `json:"direct,omitempty"`
}

// node leaves it to the service to open the file, which it shares with others.
func (n *fileNode) node(wiring) service.GraphNode {
	return service.GraphNode{Name: filepath.Base(string(n.Path)), Path: string(n.Path), Direct: n.Direct}
}

type httpNode struct {
	URL          webURL            `json:"url,omitempty" validate:"required,http_url"`
	AllowPrivate bool              `json:"allow_private,omitempty"`
	Headers      map[string]secret `json:"headers,omitempty"`
	CA           hostPath          `json:"ca,omitempty"`
}

func (n *httpNode) node(wiring) service.GraphNode {
	return service.GraphNode{Name: http.Name(string(n.URL)), ReadOnly: true, Open: func(ctx context.Context) (storage.File, error) {
		opt := http.Options{URL: string(n.URL), AllowPrivate: n.AllowPrivate, Headers: make(map[string]string)}
		for name, value := range n.Headers {
			opt.Headers[name] = string(value)
		}
		var err error
		if opt.CA, err = authorities(n.CA); err != nil {
			return nil, err
		}
		f, err := http.Open(ctx, opt)
		if err != nil {
			return nil, err
		}
		return f, nil
	}}
}

// authorities are those in a file of certificates, nil for the system's.
func authorities(path hostPath) (*x509.CertPool, error) {
	if path == "" {
		return nil, nil
	}
	text, err := os.ReadFile(string(path))
	if where, ok := errors.AsType[*os.PathError](err); ok {
		err = where.Err // without the path
	}
	if err != nil {
		return nil, fmt.Errorf("ca: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, errors.New("ca: the file holds no certificate")
	}
	return pool, nil
}

type nbdNode struct {
	URI         string   `json:"uri,omitempty" validate:"required"`
	CA          hostPath `json:"ca,omitempty"`
	Connections int      `json:"connections,omitempty" validate:"omitempty,min=1,max=64"`
}

func (n *nbdNode) node(wiring) service.GraphNode {
	return service.GraphNode{Name: nbd.Name(n.URI), Open: func(ctx context.Context) (storage.File, error) {
		opt := nbd.Options{URI: n.URI, Connections: n.Connections}
		pool, err := authorities(n.CA)
		if err != nil {
			return nil, err
		}
		if pool != nil {
			opt.TLS = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
		}
		f, err := nbd.Open(ctx, opt)
		if err != nil {
			return nil, err
		}
		return f, nil
	}}
}

type memNode struct {
	Size *byteSize `json:"size,omitempty" validate:"required"`
	Max  *byteSize `json:"max,omitempty" validate:"omitempty,min=4096"`
}

func (n *memNode) node(wiring) service.GraphNode {
	return service.GraphNode{Keep: true, Open: func(context.Context) (storage.File, error) {
		f, err := mem.New(mem.Options{Size: int64(*n.Size), MaxBytes: int64(given(n.Max))})
		if err != nil {
			return nil, err
		}
		return f, nil
	}}
}

type nullNode struct {
	Size *byteSize `json:"size,omitempty" validate:"required"`
}

func (n *nullNode) node(wiring) service.GraphNode {
	return service.GraphNode{Open: func(context.Context) (storage.File, error) {
		f, err := null.New(int64(*n.Size))
		if err != nil {
			return nil, err
		}
		return f, nil
	}}
}
