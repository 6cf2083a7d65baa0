package sizing

import "runtime"

// Host is what a host has to give.
type Host struct {
	CPUs      int
	MemoryMiB int
}

// ThisHost is the host that this process runs on.
func ThisHost() (Host, error) {
	memory, err := physicalMemory()
	if err != nil {
		return Host{}, err
	}
	return Host{CPUs: runtime.NumCPU(), MemoryMiB: int(memory / mib)}, nil
}
