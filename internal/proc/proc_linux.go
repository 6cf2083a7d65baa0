package proc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// startTime reads fields 3 (state) and 22 (starttime) of proc_pid_stat(5).
func startTime(pid int) (uint64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	// A process that goes away between open and read answers ESRCH.
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return 0, errNotRunning
	}
	if err != nil {
		return 0, err
	}
	return parseStat(data)
}

func parseStat(data []byte) (uint64, error) {
	// Field 2 is the program's name in parentheses and may itself hold spaces
	// and parentheses: count from the last one.
	end := bytes.LastIndexByte(data, ')')
	fields := bytes.Fields(data[end+1:])
	const state, starttime = 0, 22 - 3 // fields[0] is field 3
	if end < 0 || len(fields) <= starttime {
		return 0, fmt.Errorf("unexpected process status %q", data)
	}
	switch fields[state][0] {
	case 'Z', 'X':
		return 0, errNotRunning
	}
	return strconv.ParseUint(string(fields[starttime]), 10, 64)
}

// open returns a pidfd of exactly this process. The identity is checked after
// the pidfd is open: from then on the pid cannot have been reused unnoticed.
func (id ID) open() (*os.File, error) {
	if id.Pid <= 0 {
		return nil, errNotRunning
	}
	// Non-blocking, so that the file is handed to the runtime's poller.
	fd, err := unix.PidfdOpen(id.Pid, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) {
		return nil, errNotRunning
	}
	if err != nil {
		return nil, os.NewSyscallError("pidfd_open", err)
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	if alive, err := id.Alive(); err != nil || !alive {
		f.Close()
		return nil, errors.Join(err, errNotRunning)
	}
	return f, nil
}

func (id ID) signal(sig unix.Signal) error {
	f, err := id.open()
	if err != nil {
		return err
	}
	defer f.Close()
	err = unix.PidfdSendSignal(int(f.Fd()), sig, nil, 0)
	if errors.Is(err, unix.ESRCH) {
		return errNotRunning
	}
	return os.NewSyscallError("pidfd_send_signal", err)
}

// File returns a copy of a file that the process has open, as pidfd_getfd(2)
// does: both are the same open file. errdefs.ErrNotFound if the process has
// exited.
func (id ID) File(fd int) (*os.File, error) {
	f, err := id.open()
	if err != nil {
		return nil, fmt.Errorf("file %d of process %s: %w", fd, id, err)
	}
	defer f.Close()
	got, err := unix.PidfdGetfd(int(f.Fd()), fd, 0)
	if errors.Is(err, unix.ESRCH) {
		err = errNotRunning
	}
	if err != nil {
		return nil, fmt.Errorf("file %d of process %s: %w", fd, id, os.NewSyscallError("pidfd_getfd", err))
	}
	return os.NewFile(uintptr(got), fmt.Sprintf("file %d of process %s", fd, id)), nil
}

// wait waits for the pidfd to become readable, which it does when the process
// exits (pidfd_open(2)).
func (id ID) wait(ctx context.Context, wantStatus bool) (status syscall.WaitStatus, known bool, err error) {
	f, err := id.open()
	if err != nil {
		return 0, false, err
	}
	defer f.Close()
	stop := context.AfterFunc(ctx, func() { f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	conn, err := f.SyscallConn()
	if err != nil {
		return 0, false, err
	}
	var pollErr error
	err = conn.Read(func(fd uintptr) bool {
		var n int
		n, pollErr = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		if errors.Is(pollErr, unix.EINTR) {
			pollErr = nil
		}
		if n > 0 && wantStatus {
			status, known = exitStatus(int(fd))
		}
		return n > 0 || pollErr != nil
	})
	if ctx.Err() != nil && err != nil {
		return 0, false, context.Cause(ctx)
	}
	return status, known, errors.Join(err, pollErr)
}

// reapTimeout is how long the status is waited for of a process that has exited
// and that its parent has not reaped.
const reapTimeout = 200 * time.Millisecond

// exitStatus asks a pidfd for the status of a process that has exited. Since
// Linux 6.15 that is told to everyone once the parent has reaped it, which is
// when the pidfd hangs up (PIDFD_GET_INFO in linux/pidfd.h).
func exitStatus(pidfd int) (syscall.WaitStatus, bool) {
	if _, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd)}}, int(reapTimeout.Milliseconds())); err != nil {
		return 0, false
	}
	info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
	if err := unix.IoctlPidfdInfo(pidfd, &info); err != nil || info.Mask&unix.PIDFD_INFO_EXIT == 0 {
		return 0, false
	}
	return syscall.WaitStatus(info.Exit_code), true
}

// forEach calls f with every process that runs.
func forEach(f func(ID)) error {
	dir, err := os.Open("/proc")
	if err != nil {
		return err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		if id, err := Identify(pid); err == nil {
			f(id)
		}
	}
	return nil
}

// arguments and environment are those that the program was started with, each
// of which ends in a NUL.
func arguments(pid int) ([]byte, error) { return os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)) }

func environment(pid int) ([]byte, error) { return os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid)) }
