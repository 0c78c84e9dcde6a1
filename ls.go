package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/extentd/extentd/client"
)

func lsCommand() *cobra.Command {
	var remote remoteFlags
	var output string
	cmd := &cobra.Command{
		Use:   "ls URL",
		Short: "List the images of a server: names, formats, sizes",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if output != "human" && output != "json" {
				return fmt.Errorf("output is %q, must be human or json", output)
			}
			if !isRemote(args[0]) {
				return errors.New("want the URL of a server: http://HOST, https://HOST or http+unix:///?socket=PATH")
			}
			r, err := parseRemote(args[0])
			if err != nil {
				return err
			}
			if r.image != "" && !r.full { // the last part of a prefix
				r.server, r.image = r.server+"/"+r.image, ""
			}
			server, err := remote.dial(r, 1)
			if err != nil {
				return err
			}
			defer server.Close()
			var l lister = &humanList{w: tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', 0)}
			if output == "json" {
				l = &jsonList{w: cmd.OutOrStdout()}
			}
			return list(cmd, server, r.image, l)
		},
	}
	remote.register(cmd)
	cmd.Flags().StringVar(&output, "output", "human", "`FORMAT` of the output: human or json")
	return cmd
}

// A lister prints images one by one.
type lister interface {
	entry(e *client.ImageEntry) error
	end() error
}

// list prints all images, or the one that is named.
func list(cmd *cobra.Command, server *client.Server, image string, l lister) error {
	found := false
	for e, err := range server.Images(cmd.Context()) {
		if err != nil {
			return err
		}
		if image != "" && e.Name != image {
			continue
		}
		found = true
		if err := l.entry(&e); err != nil {
			return err
		}
	}
	if image != "" && !found {
		return fmt.Errorf("%s has no image %s", server, image)
	}
	return l.end()
}

// humanList prints a line for each image.
type humanList struct {
	w   *tabwriter.Writer
	any bool
}

func (l *humanList) entry(e *client.ImageEntry) error {
	if !l.any {
		l.any = true
		if _, err := fmt.Fprint(l.w, "NAME\tFORMAT\tSIZE\tON DISK\tNOTE\n"); err != nil {
			return err
		}
	}
	var err error
	switch {
	case e.Problem != nil:
		_, err = fmt.Fprintf(l.w, "%s\t%s\t-\t-\t%s\n", printable(e.Name), printable(e.Format), printable(e.Problem.Title))
	default:
		note := ""
		if valueOf(e.ReadOnly) {
			note = "read-only"
		}
		_, err = fmt.Fprintf(l.w, "%s\t%s\t%s\t%s\t%s\n", printable(e.Name), printable(e.Format), size(valueOf(e.Size)), size(valueOf(e.Allocated)), note)
	}
	return err
}

func (l *humanList) end() error { return l.w.Flush() }

// jsonList prints an array of what the server says.
type jsonList struct {
	w   io.Writer
	any bool
}

func (l *jsonList) entry(e *client.ImageEntry) error {
	text, err := json.Marshal(e)
	if err != nil {
		return err
	}
	before := ",\n"
	if !l.any {
		l.any, before = true, "["
	}
	_, err = fmt.Fprintf(l.w, "%s%s", before, text)
	return err
}

func (l *jsonList) end() error {
	text := "]\n"
	if !l.any {
		text = "[]\n"
	}
	_, err := io.WriteString(l.w, text)
	return err
}
