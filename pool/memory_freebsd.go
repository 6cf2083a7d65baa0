package pool

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// HostMemory counts free and inactive pages as available. What the ZFS cache
// would give up is not counted.
func HostMemory() (Memory, error) {
	total, err := unix.SysctlUint64("hw.physmem")
	if err != nil {
		return Memory{}, fmt.Errorf("sysctl hw.physmem: %w", err)
	}
	m := Memory{Total: total}
	for _, name := range []string{"vm.stats.vm.v_free_count", "vm.stats.vm.v_inactive_count"} {
		pages, err := unix.SysctlUint32(name)
		if err != nil {
			return Memory{}, fmt.Errorf("sysctl %s: %w", name, err)
		}
		m.Available += uint64(pages) * uint64(os.Getpagesize())
	}
	return m, nil
}

// residentSelf is the most resident memory in bytes that this process ever had
// (getrusage(2), ru_maxrss), or 0.
func residentSelf() uint64 {
	var usage unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &usage); err != nil {
		return 0
	}
	return uint64(usage.Maxrss) << 10
}
