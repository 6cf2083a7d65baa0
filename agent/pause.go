//go:build linux

package agent

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// PauseCommand is the argument with which the agent runs Pause.
	PauseCommand = "pause"

	// pauseUser is nobody's, and no container's by chance.
	pauseUser = 65535
	// pauseTimeout bounds the start of the pause process.
	pauseTimeout = 10 * time.Second
	// emptyRoot is the mount point of its root.
	emptyRoot = "/run/sandbox/empty"
)

// makePIDNS makes the PID namespace of the pod with Pause as its first process:
// a namespace lives as long as that does.
func makePIDNS(path string) error {
	if err := os.MkdirAll(emptyRoot, 0o755); err != nil {
		return fmt.Errorf("make pid namespace: %w", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("make pid namespace: %w", err)
	}
	defer r.Close()
	cmd := exec.Command("/proc/self/exe", PauseCommand)
	cmd.ExtraFiles = []*os.File{w}
	// What the pod's containers can see of it in /proc/1 must lead nowhere.
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
	}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return fmt.Errorf("make pid namespace: %w", err)
	}
	if err := r.SetReadDeadline(time.Now().Add(pauseTimeout)); err != nil {
		return fmt.Errorf("make pid namespace: %w", err)
	}
	if said, err := io.ReadAll(r); err != nil || len(said) == 0 {
		_ = cmd.Process.Kill()
		return fmt.Errorf("make pid namespace: its first process has not come up: %w", err)
	}
	// It is reaped with all others (reapChildren).
	defer cmd.Process.Release()
	if err := holdNamespace("/proc/"+strconv.Itoa(cmd.Process.Pid)+"/ns/pid", path); err != nil {
		_ = cmd.Process.Kill()
		return fmt.Errorf("make pid namespace: %w", err)
	}
	return nil
}

// Pause is the first process of a PID namespace that containers share: it reaps
// orphans. It has an empty root, no user and no privileges, and so nothing that
// a container could take from it. It returns only on failure.
func Pause() error {
	ready := os.NewFile(3, "ready")
	if err := leaveForEmptyRoot(); err != nil {
		return err
	}
	if err := syscall.Setgroups(nil); err != nil {
		return fmt.Errorf("drop groups: %w", err)
	}
	if err := syscall.Setgid(pauseUser); err != nil {
		return fmt.Errorf("drop group: %w", err)
	}
	// With the last user id 0 go all capabilities (capabilities(7)).
	if err := syscall.Setuid(pauseUser); err != nil {
		return fmt.Errorf("drop user: %w", err)
	}
	// Children of a process that ignores SIGCHLD are reaped by the kernel
	// (wait(2)).
	signal.Ignore()
	if _, err := ready.Write([]byte{0}); err != nil {
		return err
	}
	ready.Close()
	for {
		_ = unix.Pause()
	}
}

// leaveForEmptyRoot replaces the root of the mount namespace by an empty one.
func leaveForEmptyRoot() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("empty root: make mounts private: %w", err)
	}
	if err := unix.Mount("tmpfs", emptyRoot, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_RDONLY, "size=4k"); err != nil {
		return fmt.Errorf("empty root: %w", err)
	}
	if err := os.Chdir(emptyRoot); err != nil {
		return fmt.Errorf("empty root: %w", err)
	}
	// Stacked on the old root, which is then the one to go (pivot_root(2)).
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("empty root: pivot: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("empty root: unmount the old one: %w", err)
	}
	return os.Chdir("/")
}
