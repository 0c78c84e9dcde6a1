package main

import (
	"context"
	"errors"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/mem"
	"github.com/extentd/extentd/storage/null"
)

// The rules in tags do not know all that the packages of nodes and filters know
// of their options: these are asked once, before anything is served, and without
// touching what the options name.

// addInvalid notes what a package has against an option at a path. Other errors
// are those of opening an image, and told then.
func (p *problems) addInvalid(path string, err error) {
	var wrong *storage.InvalidError
	if errors.As(err, &wrong) {
		p.add(join(path, wrong.Field), "%s", wrong.Detail)
	}
}

// probeNode opens a node that may ask nothing of anybody.
func probeNode(options nodeOptions) error {
	open := options.node(wiring{}).Open
	if open == nil {
		return nil
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	f, err := open(ctx)
	if err != nil {
		return err
	}
	return f.Close()
}

// probeFilter opens a filter over a node that allows whatever any does, and whose
// scratch file is in memory.
func probeFilter(options filterOptions) error {
	all, err := null.New(storage.MaxSize)
	if err != nil {
		return err
	}
	next := storage.NewNode("the node below", all, storage.NodeOptions{})
	scratch := func(context.Context, string, hostPath) (storage.File, error) { return mem.New(mem.Options{}) }
	f, err := options.filter(wiring{scratch: scratch}).Open(context.Background(), next)
	if err != nil {
		return errors.Join(err, next.Close())
	}
	return f.Close()
}
