package proc

import (
	"encoding/binary"
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// More offsets in struct kinfo_proc, sys/user.h.
const (
	// kinfoRssize is in pages, kinfoRuntime in microseconds.
	kinfoRssize  = 264
	kinfoRuntime = 328
)

func usageOf(pid int) (Usage, error) {
	data, err := unix.SysctlRaw("kern.proc.pid", pid)
	if errors.Is(err, unix.ESRCH) || err == nil && len(data) == 0 {
		return Usage{}, errNotRunning
	}
	if err != nil {
		return Usage{}, os.NewSyscallError("sysctl kern.proc.pid", err)
	}
	if _, _, err := parseKinfo(data); err != nil {
		return Usage{}, err
	}
	return Usage{
		RSS:            binary.LittleEndian.Uint64(data[kinfoRssize:]) * uint64(os.Getpagesize()),
		CPUNanoseconds: binary.LittleEndian.Uint64(data[kinfoRuntime:]) * 1000,
	}, nil
}
