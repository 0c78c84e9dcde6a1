package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// confined is the first argument of a test program that is to become what it is
// told to: ROOT DATA PROGRAM ARGUMENT...
const confined = "become-confined"

// confine runs a program with ROOT as its root file system, read-only but for
// DATA at /images, as the owner of the image, without privileges and without a
// way to gain any. It returns only if it fails. It needs a mount name space of its
// own, and the right to mount there.
func confine(root, data string, command []string) error {
	runtime.LockOSThread()
	images := filepath.Join(root, "images")
	if err := errors.Join(
		at("make mounts private", unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")),
		at("bind the root", unix.Mount(root, root, "", unix.MS_BIND, "")),
		at("bind the images", unix.Mount(data, images, "", unix.MS_BIND, "")),
		at("make the root read-only", remount(root, unix.MS_RDONLY)),
		at("bound what the images may be", remount(images, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC)),
	); err != nil {
		return err
	}
	if err := errors.Join(
		at("change the root", unix.Chroot(root)),
		at("enter the root", unix.Chdir("/")),
		at("give up capabilities", unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)),
		at("gain no privileges", unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)),
	); err != nil {
		return err
	}
	if unix.Getuid() == 0 {
		if err := errors.Join(
			at("give up groups", syscall.Setgroups([]int{})),
			at("become the group", syscall.Setgid(owner)),
			at("become the user", syscall.Setuid(owner)),
		); err != nil {
			return err
		}
	}
	return at("execute", unix.Exec(command[0], command, []string{}))
}

func at(what string, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// remount adds flags to a bind mount. Those that it has must stay: the kernel
// lets nobody but their owner take them away.
func remount(path string, flags uintptr) error {
	var is unix.Statfs_t
	if err := unix.Statfs(path, &is); err != nil {
		return err
	}
	keep := uintptr(is.Flags) & (unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_NOATIME | unix.MS_NODIRATIME)
	return unix.Mount("", path, "", unix.MS_BIND|unix.MS_REMOUNT|keep|flags, "")
}

// inside is the command that runs arguments in the image: as root in a mount
// name space, as anybody else in a user name space too.
func inside(root, data string, args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", append([]string{confined, root, data}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if uid := os.Getuid(); uid != 0 {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: owner, HostID: uid, Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: owner, HostID: os.Getgid(), Size: 1}}
		cmd.SysProcAttr.AmbientCaps = []uintptr{unix.CAP_SYS_ADMIN, unix.CAP_SYS_CHROOT}
	}
	return cmd
}

// A container is extentd in the image's root file system.
type container struct {
	cmd  *exec.Cmd
	url  string
	logs *strings.Builder
}

// start runs the image with its entry point and command, and arguments behind
// them, and waits until it serves.
func start(t *testing.T, root, data string, args ...string) *container {
	t.Helper()
	file, err := imageFor(t, runtime.GOARCH).ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	all := append(append(append([]string{}, file.Config.Entrypoint...), file.Config.Cmd...), args...)
	// The parent of a process with Pdeathsig is a thread.
	runtime.LockOSThread()
	t.Cleanup(runtime.UnlockOSThread)
	c := &container{cmd: inside(root, data, all...), logs: new(strings.Builder)}
	c.cmd.Stderr = c.logs
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		t.Fatalf("%v: this test runs as root, or where users may make user name spaces (sysctl kernel.unprivileged_userns_clone=1)", err)
	}
	t.Cleanup(func() {
		if c.cmd.ProcessState == nil {
			_ = c.cmd.Process.Kill()
			_ = c.cmd.Wait()
		}
		if t.Failed() {
			t.Logf("standard error:\n%s", c.logs)
		}
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	url, ok := strings.CutPrefix(strings.TrimSpace(line), "listening on ")
	if err != nil || !ok {
		_ = c.cmd.Wait()
		t.Fatalf("it does not serve: %q, %v", line, err)
	}
	c.url = url
	return c
}

// stop asks extentd to end, and waits until it has.
func (c *container) stop(t *testing.T) {
	t.Helper()
	if err := c.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(time.Minute, func() { _ = c.cmd.Process.Kill() })
	defer late.Stop()
	if err := c.cmd.Wait(); err != nil {
		t.Errorf("the end: %v, want exit code 0", err)
	}
}

// ownerOf is the user whom a file belongs to.
func ownerOf(info os.FileInfo) uint32 { return info.Sys().(*syscall.Stat_t).Uid }
