package bhyve

import (
	"context"
	"fmt"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/vmmapi"
	"github.com/containerd/errdefs"
)

// Backend makes machines out of bhyve(8) processes.
type Backend struct {
	host *vmmapi.Host
}

var _ hypervisor.Backend = Backend{}

// New returns the backend. Whether this host has what it needs is told by
// Capabilities.
func New() Backend { return Backend{host: vmmapi.ThisHost()} }

// Name implements hypervisor.Backend.
func (Backend) Name() string { return "bhyve" }

// Capabilities implements hypervisor.Backend. Guests always run on the
// hardware, and FreeBSD 15's bhyve has no vsock. It returns
// errdefs.ErrNotImplemented where libvmmapi is not linked in, and
// errdefs.ErrFailedPrecondition where vmm(4) is not loaded.
func (b Backend) Capabilities(context.Context) (hypervisor.Capabilities, error) {
	n, err := b.host.MaxVCPUs()
	if err != nil {
		return hypervisor.Capabilities{}, fmt.Errorf("bhyve machines: %w", err)
	}
	return hypervisor.Capabilities{Accelerated: true, MaxVCPUs: n}, nil
}

// Launch implements hypervisor.Backend. It returns errdefs.ErrNotImplemented.
func (Backend) Launch(_ context.Context, cfg hypervisor.Config, _ *receipt.Book) (hypervisor.Machine, error) {
	return nil, fmt.Errorf("launch bhyve machine %s: %w", cfg.ID, errdefs.ErrNotImplemented)
}
