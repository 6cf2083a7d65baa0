package proc

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

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
	data, err := kinfoOf(pid)
	if err != nil {
		return 0, err
	}
	id, err := running(data)
	return id.Start, err
}

// kinfoOf is the struct kinfo_proc of a process that has not been reaped.
func kinfoOf(pid int) ([]byte, error) {
	data, err := unix.SysctlRaw("kern.proc.pid", pid)
	if errors.Is(err, unix.ESRCH) || err == nil && len(data) == 0 {
		return nil, errNotRunning
	}
	if err != nil {
		return nil, os.NewSyscallError("sysctl kern.proc.pid", err)
	}
	return data, nil
}

// running is whom a struct kinfo_proc is of, if that one runs.
func running(data []byte) (ID, error) {
	id, err := parseKinfo(data)
	if err == nil && data[kinfoStat] == kinfoZombie {
		err = errNotRunning
	}
	return id, err
}

func parseKinfo(data []byte) (ID, error) {
	if len(data) < kinfoProcSize || binary.LittleEndian.Uint32(data) != kinfoProcSize {
		return ID{}, fmt.Errorf("struct kinfo_proc of %d bytes: want %d", len(data), kinfoProcSize)
	}
	sec := binary.LittleEndian.Uint64(data[kinfoStart:])
	usec := binary.LittleEndian.Uint64(data[kinfoStart+8:])
	return ID{Pid: int(binary.LittleEndian.Uint32(data[kinfoPid:])), Start: sec*1_000_000 + usec}, nil
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
	// Of a zombie the event tells as well.
	data, err := kinfoOf(id.Pid)
	if err != nil {
		return 0, false, err
	}
	if now, err := parseKinfo(data); err != nil || now != id {
		return 0, false, cmp.Or(err, errNotRunning)
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
				if err := id.settle(ctx); err != nil {
					return 0, false, err
				}
				return syscall.WaitStatus(e.Data), true, nil
			}
		}
		if n > 0 {
			return 0, false, context.Cause(ctx)
		}
	}
}

// settleInterval is how often it is looked whether an exit is over. Nothing tells.
const settleInterval = time.Millisecond

// settle waits until a process that is exiting has exited. For one whose exit had
// begun before anybody asked, the event comes at once, when it may still have files
// open (filt_procattach in sys/kern/kern_event.c).
func (id ID) settle(ctx context.Context) error {
	tick := time.NewTicker(settleInterval)
	defer tick.Stop()
	for {
		if alive, err := id.Alive(); err != nil || !alive {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
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
		if id, err := running(data); err == nil {
			f(id)
		}
	}
	return nil
}

// arguments and environment are those that the program was started with, each
// of which ends in a NUL.
func arguments(pid int) ([]byte, error) { return unix.SysctlRaw("kern.proc.args", pid) }

func environment(pid int) ([]byte, error) { return unix.SysctlRaw("kern.proc.env", pid) }
