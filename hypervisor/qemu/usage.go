//go:build linux

package qemu

import (
	"context"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
)

var _ hypervisor.Measurer = (*machine)(nil)

// Usage implements hypervisor.Measurer. It works while the machine is parked.
func (m *machine) Usage(context.Context) (hypervisor.Usage, error) {
	u, err := m.ProcessUsage()
	if err != nil {
		return u, err
	}
	u.GuestPrivateDirty, err = m.Process.ID().PrivateDirty(m.guestMemory)
	if err != nil {
		return hypervisor.Usage{}, m.UsageError(err)
	}
	return u, nil
}
