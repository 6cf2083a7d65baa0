package bhyve

import (
	"context"
	"fmt"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	"github.com/containerd/errdefs"
)

var _ hypervisor.Snapshotter = (*machine)(nil)

// Snapshot implements hypervisor.Snapshotter: it is errdefs.ErrNotImplemented. A
// machine that may be saved at any moment may be in the middle of a computation,
// and bhyve(8) does not save the registers of the FPU. Checkpoint is for those
// that are known to wait.
func (m *machine) Snapshot(context.Context, string) error {
	return fmt.Errorf("snapshot of machine %s: bhyve does not save the registers of the FPU, which its processes use: %w", m.ID(), errdefs.ErrNotImplemented)
}
