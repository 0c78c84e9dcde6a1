package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/extentd/extentd/client/transfer"
)

// copyFlags are those of the verb copy.
type copyFlags struct {
	remoteFlags
	connections  int
	sourceFormat string
	targetFormat string
	backingDirs  []string
	options      []string
	force        bool
	targetIsZero bool
	resume       bool
	resumeFile   string
	allowChanges bool
	verify       bool
	checksum     bool
	progress     bool
	noProgress   bool
	output       string
	interval     time.Duration
	since        string
	dirty        string
}

func copyCommand() *cobra.Command {
	f := &copyFlags{}
	cmd := &cobra.Command{
		Use:   "copy SOURCE TARGET",
		Short: "Copy a disk: from and to files, images of servers, and NBD exports",
		Long: "Copy what a guest reads: sparse, in parallel, and with a checksum at the end.\n\n" +
			"SOURCE and TARGET are each a file (its format by extension, or as a flag says), an image\n" +
			"of an extentd (http://HOST/NAME, https://HOST/v1/images/NAME, http+unix:///NAME?socket=PATH),\n" +
			"or an NBD export (nbd://HOST/NAME, nbds://, nbd+unix:///NAME?socket=PATH).\n\n" +
			"A file that is made appears under its name when it is complete; until then it is\n" +
			"TARGET.partial, beside TARGET.partial.state, which --resume goes on from. Images of\n" +
			"servers and NBD exports are written in place.",
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.check(); err != nil {
				return err
			}
			return f.run(cmd, args[0], args[1])
		},
	}
	f.register(cmd)
	return cmd
}

func (f *copyFlags) register(cmd *cobra.Command) {
	f.remoteFlags.register(cmd)
	flags := cmd.Flags()
	flags.IntVar(&f.connections, "connections", 4, "have `N` requests under way at a time")
	flags.StringVar(&f.sourceFormat, "source-format", "", "`FORMAT` of a source that is a file: qcow2 or raw (default: by its extension)")
	flags.StringVar(&f.targetFormat, "target-format", "", "`FORMAT` of a new target: qcow2 or raw (default: by its extension)")
	flags.StringArrayVar(&f.backingDirs, "backing-dir", nil, "a source that is a file may name backing and data files in `DIR`; may be repeated")
	flags.StringArrayVarP(&f.options, "options", "o", nil, "`OPTION=VALUE`,... of a new target, as for create; may be repeated")
	flags.BoolVar(&f.force, "force", false, "write over a target that exists: a file is replaced once the copy is complete")
	flags.BoolVar(&f.targetIsZero, "target-is-zero", false, "a target that exists reads as zeros: do not write any")
	flags.BoolVar(&f.resume, "resume", false, "go on with a copy that was interrupted, if there is one")
	flags.StringVar(&f.resumeFile, "resume-file", "", "keep how far the copy is in `FILE` (default: beside a target that is a file)")
	flags.BoolVar(&f.allowChanges, "allow-changes", false, "copy a source that is being written to: the copy is of no one time")
	flags.BoolVar(&f.verify, "verify", false, "read the target back at the end, and compare checksums")
	flags.BoolVar(&f.checksum, "checksum", true, "compute the checksum of the content")
	flags.BoolVar(&f.progress, "progress", false, "show how far the copy is (default: if standard error is a terminal)")
	flags.BoolVar(&f.noProgress, "no-progress", false, "do not")
	flags.StringVar(&f.output, "output", "human", "`FORMAT` of the result: human or json")
	flags.StringVar(&f.since, "since", "", "copy only what has changed since the `SNAPSHOT` of a source by an extentd, to a target that is as of then")
	flags.StringVar(&f.dirty, "dirty", "", "copy only what the `BITMAP` of a source by an extentd marks, likewise")
	flags.DurationVar(&f.interval, "checkpoint", 5*time.Second, "flush the target, and note how far the copy is, every `DURATION`")
}

func (f *copyFlags) check() error {
	switch {
	case f.output != "human" && f.output != "json":
		return fmt.Errorf("output is %q, must be human or json", f.output)
	case f.connections < 1 || f.connections > 64:
		return fmt.Errorf("connections is %d, must be 1 to 64", f.connections)
	case f.interval <= 0:
		return fmt.Errorf("checkpoint is %v, must be positive", f.interval)
	case f.progress && f.noProgress:
		return errors.New("progress and no-progress exclude each other")
	case f.verify && !f.checksum:
		return errors.New("verify compares checksums: it needs --checksum")
	}
	return f.checkChanges()
}

// changesOnly reports whether the target has all but what has changed.
func (f *copyFlags) changesOnly() bool { return f.since != "" || f.dirty != "" }

// checkChanges refuses what does not go with changes. A copy of them that was
// interrupted is done again.
func (f *copyFlags) checkChanges() error {
	switch {
	case !f.changesOnly():
	case f.since != "" && f.dirty != "":
		return errors.New("since and dirty exclude each other")
	case f.resume || f.resumeFile != "":
		return errors.New("what has changed is copied anew, and not resumed: since and dirty exclude resume")
	case f.targetIsZero || len(f.options) > 0:
		return errors.New("what has changed is copied to a target that has all the rest: since and dirty exclude target-is-zero and options")
	}
	return nil
}

// A copying is one run of the verb.
type copying struct {
	*copyFlags
	source  copySource
	target  copyTarget
	state   transfer.State
	file    string // where the state is kept, "" for nowhere
	resumed bool
}

// run copies, and prints what was copied.
func (f *copyFlags) run(cmd *cobra.Command, from, to string) (err error) {
	ctx := cmd.Context()
	begin := time.Now()
	c := &copying{copyFlags: f}
	if c.source, err = f.openSource(ctx, from); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.source.close()) }()
	if sameFile(from, to) {
		return fmt.Errorf("%s and %s are the same file", from, to)
	}
	if c.target, err = f.planTarget(to); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.target.close()) }()
	if err := c.openTarget(ctx); err != nil {
		return err
	}
	show := f.newBar(cmd.ErrOrStderr(), c.source.Size())
	result, err := c.copy(ctx, show)
	if err != nil {
		show.stop()
		return errors.Join(fmt.Errorf("copy %s to %s: %w", c.source.endpoint().Name, c.target.endpoint().Name, err), c.abandon(ctx))
	}
	show.finish()
	return f.print(cmd.OutOrStdout(), c, &result, time.Since(begin))
}

// openTarget opens what the state of an earlier run says, or makes a new target.
func (c *copying) openTarget(ctx context.Context) error {
	if c.file = c.resumeFile; c.file == "" {
		c.file = c.target.stateFile()
	}
	if c.resume && c.file == "" {
		return fmt.Errorf("%s: a copy to what is no file needs --resume-file to be resumed", c.target.endpoint().Name)
	}
	if c.resume {
		resumed, err := c.openResumed(ctx)
		if resumed || err != nil {
			return err
		}
	}
	if err := c.target.create(ctx, c.source.Size()); err != nil {
		return err
	}
	if c.changesOnly() && c.target.Size() != c.source.Size() {
		return fmt.Errorf("%s has %d bytes, and the source %d: resize it first", c.target.endpoint().Name, c.target.Size(), c.source.Size())
	}
	c.state = transfer.State{Source: c.source.endpoint(), Target: c.target.endpoint(), NoSum: !c.checksum}
	if c.file == "" {
		return nil
	}
	return c.state.Save(c.file) // over that of an earlier target
}

// copy copies, verifies, and gives the target its name.
func (c *copying) copy(ctx context.Context, show *copyBar) (transfer.Result, error) {
	opt := transfer.Options{
		Workers:      c.connections,
		TargetIsZero: c.target.isZero(),
		NoSum:        !c.checksum || c.changesOnly(), // the rest is not read
		Interval:     c.interval,
		Progress:     show.update,
	}
	if c.resumed {
		opt.From = &c.state.Point
	}
	if c.file != "" {
		opt.Save = func(p transfer.Point) error {
			c.state.Point = p
			return c.state.Save(c.file)
		}
	}
	result, err := transfer.Copy(ctx, c.source, c.target, opt)
	if err != nil {
		return result, err
	}
	if c.verify {
		if err := c.compare(ctx, &result, show); err != nil {
			return result, err
		}
	}
	if err := c.target.finish(ctx, c.resumed); err != nil {
		return result, err
	}
	return result, removeState(c.file)
}

// abandon removes what nothing can be resumed from.
func (c *copying) abandon(ctx context.Context) error {
	if c.file != "" {
		return nil
	}
	return c.target.discard(context.WithoutCancel(ctx))
}
