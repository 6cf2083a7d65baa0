package sizing

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// physicalMemory is in bytes.
func physicalMemory() (uint64, error) {
	n, err := unix.SysctlUint64("hw.physmem")
	if err != nil {
		return 0, fmt.Errorf("memory of the host: %w", err)
	}
	return n, nil
}
