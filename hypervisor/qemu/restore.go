//go:build linux

package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor/internal/checkpoint"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

var _ hypervisor.Restorer = Backend{}

// Restore implements hypervisor.Restorer. The memory's file is mapped privately:
// clones of one checkpoint share the pages that they have not written. One that
// is to be saved again gets a copy of the file instead.
func (b Backend) Restore(ctx context.Context, cfg hypervisor.Config, dir string, book *receipt.Book) (hypervisor.Machine, error) {
	if err := cfg.ValidateSave(); err != nil {
		return nil, err
	}
	return b.start(ctx, cfg, dir, book)
}

func (m *machine) restore(ctx context.Context, caps hypervisor.Capabilities, s spec, dir string, book *receipt.Book) error {
	manifest, err := checkpoint.Open(dir)
	if err != nil {
		return err
	}
	// All but the version, which QEMU itself will say.
	is, err := describe(m.cfg, s.kvm, caps.Vsock, manifest.Machine.Monitor)
	if err != nil {
		return err
	}
	if err := manifest.Machine.Agree(is); err != nil {
		return err
	}
	state, err := os.Open(statePath(dir))
	if err != nil {
		return err
	}
	defer state.Close()

	s.restored = true
	what := wholeMemory
	if manifest.Has(memoryName) {
		s.memory, what = memoryDir(dir).path(), withoutMemory
	}
	switch {
	case m.cfg.CheckpointDir == "":
	case what == wholeMemory:
		return fmt.Errorf("%s has no memory of its own to be saved again: %w", dir, errdefs.ErrNotImplemented)
	default:
		if err := m.memory.vacant(); err != nil {
			return err
		}
		if err := copySparse(m.memory.path(), s.memory); err != nil {
			return err
		}
		s.memory, s.shared = m.memory.path(), true
	}
	if err := m.run(ctx, caps, s, book); err != nil {
		return err
	}
	is.Monitor = m.monitor.version
	if err := manifest.Machine.Agree(is); err != nil {
		return err
	}
	if err := m.migrate(ctx, state, what, "migrate-incoming"); err != nil {
		return err
	}
	if err := m.migrated(ctx); err != nil {
		return err
	}
	if err := m.execute(ctx, "cont", nil, nil); err != nil {
		return err
	}
	return m.running(ctx)
}

// copySparse copies what of a file is not a hole.
func copySparse(to, from string) (err error) {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	info, err := src.Stat()
	if err != nil {
		return err
	}
	dst, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dst.Close()) }()
	if err := dst.Truncate(info.Size()); err != nil {
		return err
	}
	for end := int64(0); ; {
		start, err := src.Seek(end, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("find the data of %s: %w", from, err)
		}
		if end, err = src.Seek(start, unix.SEEK_HOLE); err != nil {
			return fmt.Errorf("find the holes of %s: %w", from, err)
		}
		if _, err := src.Seek(start, io.SeekStart); err != nil {
			return err
		}
		if _, err := dst.Seek(start, io.SeekStart); err != nil {
			return err
		}
		// copy_file_range(2), where the file system has a short way.
		if _, err := io.CopyN(dst, src, end-start); err != nil {
			return err
		}
	}
}
