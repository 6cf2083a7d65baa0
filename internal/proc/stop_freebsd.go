package proc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// More offsets in struct kinfo_proc, sys/user.h.
const (
	kinfoKiflag  = 376
	kinfoWmesg   = 411
	kinfoTid     = 600
	kinfoTdflags = 1080
)

const (
	// threadStopped is SSTOP, sys/proc.h.
	threadStopped = 4
	// lockBlocked is KI_LOCKBLOCK, sys/user.h.
	lockBlocked = 1
	// sleepInterruptible is TDF_SINTR, sys/proc.h.
	sleepInterruptible = 8
)

func threadsOf(pid int) (map[int]bool, error) {
	data, err := unix.SysctlRaw("kern.proc.pid_td", pid)
	if errors.Is(err, unix.ESRCH) || err == nil && len(data) == 0 {
		return nil, errNotRunning
	}
	if err != nil {
		return nil, os.NewSyscallError("sysctl kern.proc.pid_td", err)
	}
	threads := map[int]bool{}
	for ; len(data) > 0; data = data[kinfoProcSize:] {
		if _, err := running(data); err != nil {
			return nil, fmt.Errorf("threads of process %d: %w", pid, err)
		}
		threads[int(binary.LittleEndian.Uint32(data[kinfoTid:]))] = isStopped(data)
	}
	return threads, nil
}

// isStopped says whether a thread is suspended rather than about to be. The
// state is SSTOP for every thread of a stopped process that does not run just
// now (sys/kern/kern_proc.c, fill_kinfo_thread), also for one in the middle of
// a system call: a vCPU that waits in HLT comes out of it within a second, and
// is suspended on its way to user mode. Only interruptible sleeps are suspended
// as they are (sys/kern/kern_sig.c, sig_suspend_threads).
func isStopped(kinfo []byte) bool {
	blocked := binary.LittleEndian.Uint64(kinfo[kinfoKiflag:])&lockBlocked != 0
	asleep := kinfo[kinfoWmesg] != 0
	interruptible := binary.LittleEndian.Uint64(kinfo[kinfoTdflags:])&sleepInterruptible != 0
	return kinfo[kinfoStat] == threadStopped && !blocked && (!asleep || interruptible)
}
