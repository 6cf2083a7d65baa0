package pool

import "golang.org/x/sys/unix"

// cpuIdentity is the processor's model. What it can do is told to no one but by
// the CPUID instruction itself, and follows from the model.
func cpuIdentity() string {
	model, err := unix.Sysctl("hw.model")
	if err != nil {
		return ""
	}
	return model
}
