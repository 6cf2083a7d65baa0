package process

import (
	"fmt"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	"github.com/containerd/errdefs"
)

// ProcessUsage is the part of hypervisor.Usage that is the same for every
// process.
func (m *Machine) ProcessUsage() (hypervisor.Usage, error) {
	u, err := m.Process.id.Usage()
	if err != nil {
		return hypervisor.Usage{}, m.UsageError(err)
	}
	return hypervisor.Usage{
		RSS: u.RSS, PSS: u.PSS, PrivateDirty: u.PrivateDirty, CPUNanoseconds: u.CPUNanoseconds,
	}, nil
}

// UsageError says that a machine could not be measured, and that it has exited
// where it has.
func (m *Machine) UsageError(err error) error {
	if errdefs.IsNotFound(err) {
		err = hypervisor.ErrExited
	}
	return fmt.Errorf("usage of machine %s: %w", m.id, err)
}
