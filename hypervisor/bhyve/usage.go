package bhyve

import (
	"context"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
)

var _ hypervisor.Measurer = (*machine)(nil)

// Usage implements hypervisor.Measurer. bhyve(8) shares no guest memory, so all
// that is resident of it is private. Of a parked machine the guest's part and
// the exits are not told: a vCPU that was stopped at a bad moment answers only
// when it runs again (sys/dev/vmm/vmm_dev.c, vcpu_lock_one).
func (m *machine) Usage(ctx context.Context) (hypervisor.Usage, error) {
	u, err := m.ProcessUsage()
	if err != nil {
		return u, err
	}
	stopped, err := m.Process.ID().Stopped()
	if err != nil {
		return hypervisor.Usage{}, m.UsageError(err)
	}
	if stopped {
		return u, nil
	}
	type answer struct {
		vmUsage
		err error
	}
	answers := make(chan answer, 1)
	go func() {
		vm, err := m.vmm.usage(m.vm)
		answers <- answer{vm, err}
	}()
	select {
	case a := <-answers:
		if a.err != nil {
			return hypervisor.Usage{}, m.UsageError(a.err)
		}
		u.VMExits, u.GuestPrivateDirty = a.Exits, a.Resident
		return u, nil
	case <-ctx.Done():
		return hypervisor.Usage{}, m.UsageError(context.Cause(ctx))
	}
}
