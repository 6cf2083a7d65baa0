package lab

import (
	"os"
	"strconv"
	"time"
)

// SlowEnv says how many times slower this machine is than those that the times
// in tests are made for: one that is emulated, and emulates its guests.
const SlowEnv = "BHYVE_LAB_SLOW"

var slowness = func() int {
	n, err := strconv.Atoi(os.Getenv(SlowEnv))
	if err != nil || n < 1 {
		return 1
	}
	return n
}()

// Patience is what d is on this machine.
func Patience(d time.Duration) time.Duration { return time.Duration(slowness) * d }

// timeouts are containerd's towards its shims, as it has them by default
// (core/runtime/v2/shim.go).
func timeouts() map[string]string {
	return map[string]string{
		"io.containerd.timeout.shim.cleanup":  Patience(5 * time.Second).String(),
		"io.containerd.timeout.shim.load":     Patience(5 * time.Second).String(),
		"io.containerd.timeout.shim.shutdown": Patience(3 * time.Second).String(),
	}
}
