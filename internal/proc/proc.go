// Package proc names host processes in a way that survives the reuse of pids,
// and waits for and ends them whether or not they are children.
package proc

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// ID is one process on this host for as long as the host is up. The zero value
// names none.
type ID struct {
	Pid int `json:"pid"`
	// Start is when the process started, in the unit in which the kernel keeps
	// it: clock ticks since boot on Linux (proc_pid_stat(5), field 22),
	// microseconds since the epoch on FreeBSD (ki_start in sys/user.h). It is
	// only ever compared.
	Start uint64 `json:"start"`
}

func (id ID) String() string { return fmt.Sprintf("%d@%d", id.Pid, id.Start) }

// errNotRunning is returned by the platform's lookups for a process that does
// not exist or has exited and waits to be reaped.
var errNotRunning = fmt.Errorf("no such process: %w", errdefs.ErrNotFound)

// Identify returns the identity of the process that has pid now. A process
// that has exited counts as gone even while nobody has reaped it; the error
// then is errdefs.ErrNotFound.
func Identify(pid int) (ID, error) {
	start, err := startTime(pid)
	if err != nil {
		return ID{}, fmt.Errorf("identify process %d: %w", pid, err)
	}
	return ID{Pid: pid, Start: start}, nil
}

// Alive says whether the process runs. False means for certain that it does
// not; an error means that it could not be found out.
func (id ID) Alive() (bool, error) {
	if id.Pid <= 0 {
		return false, nil
	}
	now, err := Identify(id.Pid)
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	return now == id, err
}

// Signal sends sig to the process, and to no other that has its pid by now. It
// returns errdefs.ErrNotFound if the process has exited.
func (id ID) Signal(sig unix.Signal) error {
	if err := id.signal(sig); err != nil {
		return fmt.Errorf("signal process %s: %w", id, err)
	}
	return nil
}

// Wait returns nil once the process has exited. It does not reap: a child of
// the caller remains to be waited for. The error is ctx's if it ends first.
func (id ID) Wait(ctx context.Context) error {
	_, _, err := id.waitFor(ctx, false)
	return err
}

// WaitStatus is Wait, with how the process ended. known is false where the
// system tells that to the parent alone, as Linux before 6.15 does, where the
// parent does not ask for it, or where the process was gone before.
func (id ID) WaitStatus(ctx context.Context) (status syscall.WaitStatus, known bool, err error) {
	return id.waitFor(ctx, true)
}

func (id ID) waitFor(ctx context.Context, wantStatus bool) (status syscall.WaitStatus, known bool, err error) {
	status, known, err = id.wait(ctx, wantStatus)
	if err != nil && !errdefs.IsNotFound(err) {
		return 0, false, fmt.Errorf("wait for process %s: %w", id, err)
	}
	return status, known, nil
}

// Kill sends SIGKILL and waits until the process has exited. It succeeds where
// there is nothing to kill.
func (id ID) Kill(ctx context.Context) error {
	err := id.Signal(unix.SIGKILL)
	if errdefs.IsNotFound(err) {
		return nil
	}
	return errors.Join(err, id.Wait(ctx))
}
