package proc

import (
	"encoding/binary"
	"os"
)

// More offsets in struct kinfo_proc, sys/user.h.
const (
	// kinfoRssize is in pages, kinfoRuntime in microseconds.
	kinfoRssize  = 264
	kinfoRuntime = 328
)

func usageOf(pid int) (Usage, error) {
	data, err := kinfoOf(pid)
	if err != nil {
		return Usage{}, err
	}
	if _, err := running(data); err != nil {
		return Usage{}, err
	}
	return Usage{
		RSS:            binary.LittleEndian.Uint64(data[kinfoRssize:]) * uint64(os.Getpagesize()),
		CPUNanoseconds: binary.LittleEndian.Uint64(data[kinfoRuntime:]) * 1000,
	}, nil
}
