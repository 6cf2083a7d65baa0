//go:build linux

package qemu

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor/internal/checkpoint"
	"github.com/containerd/errdefs"
)

var _ hypervisor.Snapshotter = (*machine)(nil)

// Snapshot implements hypervisor.Snapshotter. Whatever the memory is in, what is
// in it goes into the state's file: a machine that runs on changes its memory.
func (m *machine) Snapshot(ctx context.Context, dir string) error {
	if err := m.snapshot(ctx, dir); err != nil {
		return fmt.Errorf("snapshot of machine %s: %w", m.ID(), err)
	}
	return nil
}

func (m *machine) snapshot(ctx context.Context, dir string) error {
	if m.Process.HasExited() {
		return hypervisor.ErrExited
	}
	if err := m.cfg.ValidateSave(); err != nil {
		return err
	}
	if taken, err := checkpoint.Exists(dir); err != nil || taken {
		return errors.Join(err, fmt.Errorf("%s: %w", dir, errdefs.ErrAlreadyExists))
	}
	// One that is parked hears of nothing.
	if err := m.Wake(); err != nil {
		return err
	}
	err := m.save(ctx, dir, wholeMemory)
	if gerr := m.goOn(ctx); err != nil || gerr != nil {
		return errors.Join(err, gerr, remove(statePath(dir)))
	}
	is, err := describe(m.cfg, m.kvm, m.cid != 0, m.monitor.version)
	if err == nil {
		err = checkpoint.Write(dir, is, stateName)
	}
	if err != nil {
		return errors.Join(err, remove(statePath(dir)))
	}
	return nil
}
