//go:build linux

package qemu

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/proc"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

var _ hypervisor.Reclaimable = (*machine)(nil)

// openMemory makes a file for a guest's memory that has no name (open(2),
// O_TMPFILE): it goes with the last process that has it.
func openMemory(dir string) (*os.File, error) {
	f, err := os.OpenFile(dir, unix.O_TMPFILE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("memory: %w", kindOf(err))
	}
	return f, nil
}

// guestMemory says whether a mapping of QEMU's is the guest's memory. Nothing else
// in it has exactly this size, but for translated code, which can be executed.
func (m *machine) guestMemory(part proc.Mapping) bool {
	return part.Size == uint64(m.cfg.MemoryMiB)<<20 && strings.HasPrefix(part.Perms, "rw-")
}

// Reclaim implements hypervisor.Reclaimable.
func (m *machine) Reclaim(ctx context.Context) error {
	id := m.Process.ID()
	stopped, err := id.Stopped()
	if err == nil && !stopped {
		err = fmt.Errorf("it is not parked: %w", errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return fmt.Errorf("reclaim memory of machine %s: %w", m.ID(), err)
	}
	// A disk takes its time, and cannot be told to stop.
	done := make(chan error, 1)
	go func() { done <- id.PageOut(m.guestMemory) }()
	select {
	case err = <-done:
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("reclaim memory of machine %s: %w", m.ID(), err)
	}
	return nil
}
