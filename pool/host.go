package pool

import (
	"runtime"
	"sync"
)

// hostIdentity is what of a host a machine's saved state depends on, beside what
// its backend knows: the monitor's build is for the backend to compare.
type hostIdentity struct {
	Arch string `json:"arch"`
	// CPU is the processor by the name that the system has for it, and a digest of
	// what it can do: a guest goes on using the instructions that it has found.
	CPU string `json:"cpu"`
}

func (h hostIdentity) String() string { return h.Arch + ", " + h.CPU }

var thisHost = sync.OnceValue(func() hostIdentity {
	return hostIdentity{Arch: runtime.GOARCH, CPU: cpuIdentity()}
})
