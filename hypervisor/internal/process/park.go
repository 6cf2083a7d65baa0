package process

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// parkTimeout bounds the wait for the process table, whatever the caller's
// context says. A vCPU of bhyve's that waits in HLT takes up to a second to
// stop (sys/amd64/vmm/vmm.c, vm_handle_hlt).
const parkTimeout = 10 * time.Second

// Park implements hypervisor.Parker.
func (m *Machine) Park(ctx context.Context) error {
	return m.parking(ctx, "park", m.Process.id.Stop)
}

// Unpark implements hypervisor.Parker.
func (m *Machine) Unpark(ctx context.Context) error {
	return m.parking(ctx, "unpark", m.Process.id.Continue)
}

// parking parks or unparks, one at a time.
func (m *Machine) parking(ctx context.Context, verb string, do func(context.Context) error) (err error) {
	defer func() {
		if err != nil && (m.Process.HasExited() || errdefs.IsNotFound(err)) {
			err = hypervisor.ErrExited
		}
		if err != nil {
			err = fmt.Errorf("%s machine %s: %w", verb, m.id, err)
		}
	}()
	ctx, cancel := context.WithTimeoutCause(ctx, parkTimeout,
		fmt.Errorf("the process table does not show it after %s: %w", parkTimeout, context.DeadlineExceeded))
	defer cancel()
	select {
	case m.turn <- struct{}{}:
		defer func() { <-m.turn }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return do(ctx)
}

// Wake makes a parked process run again, without waiting for it. One that is
// not parked, or gone, is not disturbed.
func (m *Machine) Wake() error {
	if err := m.Process.id.Signal(unix.SIGCONT); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	return nil
}
