package sizing

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// physicalMemory is in bytes.
func physicalMemory() (uint64, error) {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 0, fmt.Errorf("memory of the host: %w", err)
	}
	return uint64(info.Totalram) * uint64(info.Unit), nil
}
