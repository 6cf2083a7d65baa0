//go:build linux

package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/containerd/containerd/v2/pkg/sys/reaper"
	"github.com/containerd/log"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

const (
	// killTimeout bounds the wait for processes after SIGKILL: one that sits in
	// the kernel, on a host that does not answer, does not die.
	killTimeout = 5 * time.Second
	// writeBackTimeout bounds sync and unmount, for the same reason.
	writeBackTimeout = 20 * time.Second
	// farewellTimeout bounds the sending of the last output, events and replies.
	farewellTimeout = 2 * time.Second
)

// shutDown is the orderly end: no new connections, no processes, the last
// events sent, and nothing unwritten. It goes on after a failure, since the
// machine ends in any case, and has no error for that reason.
func (s *server) shutDown(ctx context.Context, l *link, grace time.Duration) error {
	warn := func(err error) {
		if err != nil {
			log.G(ctx).WithError(err).Warn("power off")
		}
	}
	warn(l.Close())
	s.stdio.close()
	s.ninep.close()

	warn(endProcesses(ctx, grace))

	written := make(chan error, 1)
	go func() { written <- writeBack() }()

	ctx, cancel := context.WithTimeout(ctx, farewellTimeout)
	defer cancel()
	warn(s.tasks.lastWords(ctx))
	s.endTasks.Shutdown()
	warn(s.events.wait(ctx))
	warn(s.control.Shutdown(ctx))

	timeout := time.NewTimer(writeBackTimeout)
	defer timeout.Stop()
	select {
	case err := <-written:
		warn(err)
	case <-timeout.C:
		warn(fmt.Errorf("write back: not done after %s", writeBackTimeout))
	}
	return nil
}

// endProcesses ends every process but this one: SIGTERM, SIGKILL after grace.
func endProcesses(ctx context.Context, grace time.Duration) error {
	if grace > 0 {
		left, err := signalAll(ctx, unix.SIGTERM, grace)
		if err != nil || left == 0 {
			return err
		}
	}
	left, err := signalAll(ctx, unix.SIGKILL, killTimeout)
	if err == nil && left > 0 {
		err = fmt.Errorf("%d processes survived SIGKILL for %s", left, killTimeout)
	}
	return err
}

// signalAll signals every process but this one, waits at most timeout for them
// to end, and returns how many have not.
func signalAll(ctx context.Context, sig unix.Signal, timeout time.Duration) (left int, err error) {
	// The last to exit is a child of this process, or adopted by it: whoever
	// had another parent had one that is still there.
	exits := reaper.Default.Subscribe()
	defer reaper.Default.Unsubscribe(exits)
	if err := unix.Kill(-1, sig); err != nil && !errors.Is(err, unix.ESRCH) {
		return 0, fmt.Errorf("send %s to all processes: %w", unix.SignalName(sig), err)
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for {
		left, err := userProcesses("/proc")
		if err != nil || left == 0 {
			return left, err
		}
		select {
		case <-exits:
		case <-ctx.Done():
			return left, nil
		}
	}
}

// userProcesses counts the processes other than this one that are neither the
// kernel's threads nor zombies: the ones that have an executable.
func userProcesses(proc string) (int, error) {
	entries, err := os.ReadDir(proc)
	if err != nil {
		return 0, err
	}
	n := 0
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		if _, err := os.Readlink(filepath.Join(proc, e.Name(), "exe")); err == nil {
			n++
		}
	}
	return n, nil
}

// memoryFilesystems have nothing that outlives the machine.
var memoryFilesystems = []string{
	"proc", "sysfs", "devtmpfs", "devpts", "tmpfs", "mqueue", "cgroup2", "rootfs", "ramfs", "nsfs",
}

// writeBack unmounts what has data elsewhere, the latest mount first.
func writeBack() error {
	unix.Sync()
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return slices.Contains(memoryFilesystems, m.FSType), false
	})
	if err != nil {
		return fmt.Errorf("list mounts: %w", err)
	}
	var errs []error
	for _, m := range slices.Backward(mounts) {
		if err := unix.Unmount(m.Mountpoint, unix.UMOUNT_NOFOLLOW); err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", m.Mountpoint, err))
		}
	}
	return errors.Join(errs...)
}
