package bhyve

import (
	"context"
	"fmt"
	"path/filepath"
	"runtime"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor/internal/checkpoint"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"
	"github.com/containerd/errdefs"
)

var _ hypervisor.Restorer = Backend{}

// Restore implements hypervisor.Restorer. bhyve(8) reads the whole memory into
// its own: clones share nothing. errdefs.ErrNotImplemented where kernel or
// bhyve(8) were built without it.
func (b Backend) Restore(ctx context.Context, cfg hypervisor.Config, dir string, book *receipt.Book) (hypervisor.Machine, error) {
	if cfg.CheckpointDir != "" {
		return nil, fmt.Errorf("restore machine %s: it could not be saved again: %w", cfg.ID, errdefs.ErrNotImplemented)
	}
	if err := cfg.ValidateSave(); err != nil {
		return nil, err
	}
	return b.start(ctx, cfg, dir, book)
}

// unpinnedCPUs is the host's CPUs but the first, as cpuset(1) takes them.
//
// A saved vCPU on AMD's processors takes its address space id along, with the
// CPU that it is good for, and restored it would share that CPU's translations
// with whoever has the id by now (sys/amd64/vmm/amd/svm.c, svm_vcpu_snapshot).
// It gets a new id when it finds itself on another CPU. So a machine that will be
// saved runs on the first one, and what is restored starts on any of the others.
func unpinnedCPUs(n int) (string, error) {
	switch {
	case n < 2:
		return "", fmt.Errorf("a host with one CPU cannot restore machines: %w", errdefs.ErrNotImplemented)
	case n == 2:
		return "1", nil
	}
	return fmt.Sprintf("1-%d", n-1), nil
}

// restorable returns the file to restore from, or why g is not what is in dir.
func restorable(v vmm, g guest, dir string) (string, error) {
	if err := supportsCheckpoint(v); err != nil {
		return "", err
	}
	manifest, err := checkpoint.Open(dir)
	if err != nil {
		return "", err
	}
	is, err := describe(v, g)
	if err != nil {
		return "", err
	}
	if _, err := unpinnedCPUs(runtime.NumCPU()); err != nil {
		return "", err
	}
	return filepath.Join(dir, memoryName), manifest.Machine.Agree(is)
}
