package proc

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Offsets in struct kinfo_proc, sys/user.h, which is the same on every 64-bit
// little-endian architecture; KINFO_PROC_SIZE there guards against change.
const (
	kinfoProcSize = 1088
	kinfoPid      = 72
	kinfoStart    = 336
	kinfoStat     = 388

	// kinfoZombie is SZOMB, sys/proc.h.
	kinfoZombie = 5
)

func startTime(pid int) (uint64, error) {
	data, err := unix.SysctlRaw("kern.proc.pid", pid)
	if errors.Is(err, unix.ESRCH) || err == nil && len(data) == 0 {
		return 0, errNotRunning
	}
	if err != nil {
		return 0, os.NewSyscallError("sysctl kern.proc.pid", err)
	}
	_, start, err := parseKinfo(data)
	return start, err
}

func parseKinfo(data []byte) (pid int, start uint64, err error) {
	if len(data) < kinfoProcSize || binary.LittleEndian.Uint32(data) != kinfoProcSize {
		return 0, 0, fmt.Errorf("struct kinfo_proc of %d bytes: want %d", len(data), kinfoProcSize)
	}
	if data[kinfoStat] == kinfoZombie {
		return 0, 0, errNotRunning
	}
	pid = int(binary.LittleEndian.Uint32(data[kinfoPid:]))
	sec := binary.LittleEndian.Uint64(data[kinfoStart:])
	usec := binary.LittleEndian.Uint64(data[kinfoStart+8:])
	return pid, sec*1_000_000 + usec, nil
}

// signal has a window that cannot be closed for processes that are not
// children: FreeBSD has no descriptor for them. It is the time between two
// system calls, in which the process would have to end and its pid be reused.
func (id ID) signal(sig unix.Signal) error {
	alive, err := id.Alive()
	if err != nil {
		return err
	}
	if !alive {
		return errNotRunning
	}
	err = unix.Kill(id.Pid, sig)
	if errors.Is(err, unix.ESRCH) {
		return errNotRunning
	}
	return os.NewSyscallError("kill", err)
}

// wait registers for NOTE_EXIT (kqueue(2), EVFILT_PROC) and checks the identity
// after that, so that no exit is missed. The event's data is the status, whoever
// asks. A user event wakes it when ctx ends.
func (id ID) wait(ctx context.Context, _ bool) (status syscall.WaitStatus, known bool, err error) {
	if id.Pid <= 0 {
		return 0, false, errNotRunning
	}
	kq, err := unix.Kqueue()
	if err != nil {
		return 0, false, os.NewSyscallError("kqueue", err)
	}
	f := os.NewFile(uintptr(kq), "kqueue")
	defer f.Close()

	wake := unix.Kevent_t{Ident: 1, Filter: unix.EVFILT_USER, Flags: unix.EV_ADD | unix.EV_CLEAR}
	exit := unix.Kevent_t{Ident: uint64(id.Pid), Filter: unix.EVFILT_PROC, Flags: unix.EV_ADD | unix.EV_ONESHOT, Fflags: unix.NOTE_EXIT}
	_, err = unix.Kevent(kq, []unix.Kevent_t{wake, exit}, nil, nil)
	if errors.Is(err, unix.ESRCH) {
		return 0, false, errNotRunning
	}
	if err != nil {
		return 0, false, os.NewSyscallError("kevent", err)
	}
	if alive, err := id.Alive(); err != nil || !alive {
		return 0, false, errors.Join(err, errNotRunning)
	}

	woken := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(woken)
		unix.Kevent(kq, []unix.Kevent_t{{Ident: 1, Filter: unix.EVFILT_USER, Fflags: unix.NOTE_TRIGGER}}, nil, nil)
	})
	// The descriptor may not be closed, and its number reused, under the
	// trigger.
	defer func() {
		if !stop() {
			<-woken
		}
	}()
	for {
		var events [2]unix.Kevent_t
		n, err := unix.Kevent(kq, nil, events[:], nil)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return 0, false, os.NewSyscallError("kevent", err)
		}
		for _, e := range events[:max(n, 0)] {
			if e.Filter == unix.EVFILT_PROC {
				return syscall.WaitStatus(e.Data), true, nil
			}
		}
		if n > 0 {
			return 0, false, context.Cause(ctx)
		}
	}
}

// forEach calls f with every process that runs.
func forEach(f func(ID)) error {
	// kern.proc.proc lists processes rather than threads.
	data, err := unix.SysctlRaw("kern.proc.proc")
	if err != nil {
		return os.NewSyscallError("sysctl kern.proc.proc", err)
	}
	for ; len(data) >= kinfoProcSize; data = data[kinfoProcSize:] {
		if pid, start, err := parseKinfo(data); err == nil {
			f(ID{Pid: pid, Start: start})
		}
	}
	return nil
}

// arguments and environment are those that the program was started with, each
// of which ends in a NUL.
func arguments(pid int) ([]byte, error) { return unix.SysctlRaw("kern.proc.args", pid) }

func environment(pid int) ([]byte, error) { return unix.SysctlRaw("kern.proc.env", pid) }
