//go:build linux

package qemu

import (
	"context"
	"strings"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/proc"
)

var _ hypervisor.Measurer = (*machine)(nil)

// Usage implements hypervisor.Measurer. It works while the machine is parked.
func (m *machine) Usage(context.Context) (hypervisor.Usage, error) {
	u, err := m.ProcessUsage()
	if err != nil {
		return u, err
	}
	// Nothing else in QEMU has exactly this size, but for translated code, which
	// can be executed.
	size := uint64(m.cfg.MemoryMiB) << 20
	u.GuestPrivateDirty, err = m.Process.ID().PrivateDirty(func(part proc.Mapping) bool {
		return part.Size == size && strings.HasPrefix(part.Perms, "rw-")
	})
	if err != nil {
		return hypervisor.Usage{}, m.UsageError(err)
	}
	return u, nil
}
