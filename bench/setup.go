package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// A setup is what the works share: the binary, the data, and the running
// servers. Data is made when a work first asks for it.
type setup struct {
	ctx    context.Context // of the whole run; ends the servers
	dir    string          // removed at the end
	images string          // in dir: what extentd and nginx serve
	memory string          // a directory on tmpfs, removed at the end
	binary string
	small  bool
	rounds int

	made    map[string]bool // data files by name
	named   int             // images that were made anew
	servers []*process
	extentd *extentd
	nginx   string // its URL, "" before it is started
}

func newSetup(ctx context.Context, dir string, small bool, rounds int) (*setup, error) {
	s := &setup{ctx: ctx, small: small, rounds: rounds, made: map[string]bool{}}
	var err error
	if s.dir, err = os.MkdirTemp(dir, "extentd-bench-"); err != nil {
		return nil, err
	}
	if s.memory, err = os.MkdirTemp("/dev/shm", "extentd-bench-"); err != nil {
		s.close()
		return nil, err
	}
	s.images, s.binary = filepath.Join(s.dir, "images"), filepath.Join(s.dir, "extentd")
	if err := os.Mkdir(s.images, 0o755); err != nil {
		s.close()
		return nil, err
	}
	// nginx's workers may run as another user.
	for _, d := range []string{s.dir, s.images} {
		if err := os.Chmod(d, 0o755); err != nil {
			s.close()
			return nil, err
		}
	}
	build := exec.CommandContext(ctx, "go", "build", "-o", s.binary, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		s.close()
		return nil, fmt.Errorf("go build (run this from the module's root): %w\n%s", err, out)
	}
	return s, nil
}

func (s *setup) close() {
	for _, p := range s.servers {
		p.stop()
	}
	for _, d := range []string{s.dir, s.memory} {
		if d != "" {
			_ = os.RemoveAll(d)
		}
	}
}

// A process is a server that runs until it is stopped.
type process struct {
	cmd    *exec.Cmd
	exited chan struct{}
}

func (s *setup) start(cmd *exec.Cmd) (*process, error) {
	if cmd.Stderr == nil {
		cmd.Stderr = os.Stderr
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{cmd: cmd, exited: make(chan struct{})}
	go func() {
		_ = cmd.Wait()
		close(p.exited)
	}()
	s.servers = append(s.servers, p)
	return p, nil
}

// stop ends the process; it may be called again.
func (p *process) stop() {
	_ = p.cmd.Process.Signal(os.Interrupt)
	select {
	case <-p.exited:
	case <-time.After(5 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.exited
	}
}

// await asks until ready does not fail, for ten seconds.
func await(ctx context.Context, what string, ready func() error) error {
	deadline := time.Now().Add(10 * time.Second)
	for {
		err := ready()
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			return errors.Join(fmt.Errorf("%s does not start", what), err, ctx.Err())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// command runs a program in the directory of the images to its end.
func (s *setup) command(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = s.images
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%v: %w\n%s", args, err, out)
	}
	return nil
}
