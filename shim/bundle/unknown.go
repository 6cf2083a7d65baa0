package bundle

import (
	"fmt"

	"github.com/containerd/errdefs"
)

// translateUnknown deals with what the guest's OCI runtime, crun 1.8, does not know
// and would leave out in silence: wishes about the processor are dropped, and what
// a container would not be the same without is refused.
func translateUnknown(t *translation) error {
	p, l := t.spec.Process, t.spec.Linux
	if p.Scheduler != nil || p.IOPriority != nil || p.ExecCPUAffinity != nil {
		t.ignore("process.scheduler, ioPriority and execCPUAffinity")
		p.Scheduler, p.IOPriority, p.ExecCPUAffinity = nil, nil, nil
	}
	if l.MemoryPolicy != nil {
		t.ignore("linux.memoryPolicy")
		l.MemoryPolicy = nil
	}
	if r := l.Resources; r != nil && r.CPU != nil && r.CPU.Burst != nil {
		t.ignore("linux.resources.cpu.burst")
		r.CPU.Burst = nil
	}
	switch {
	case len(l.NetDevices) > 0:
		return fmt.Errorf("linux.netDevices, which are the host's: %w", errdefs.ErrNotImplemented)
	case len(l.TimeOffsets) > 0:
		return fmt.Errorf("linux.timeOffsets: %w", errdefs.ErrNotImplemented)
	}
	return nil
}
