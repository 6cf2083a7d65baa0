package bhyve

import (
	"context"
	"path/filepath"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor/internal/checkpoint"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"
)

var _ hypervisor.Restorer = Backend{}

// Restore implements hypervisor.Restorer. bhyve(8) reads the whole memory into
// its own: clones share nothing. errdefs.ErrNotImplemented where kernel or
// bhyve(8) were built without it.
func (b Backend) Restore(ctx context.Context, cfg hypervisor.Config, dir string, book *receipt.Book) (hypervisor.Machine, error) {
	return b.start(ctx, cfg, dir, book)
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
	return filepath.Join(dir, memoryName), manifest.Machine.Agree(is)
}
