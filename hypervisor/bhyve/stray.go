package bhyve

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor/internal/process"
)

var _ hypervisor.Searcher = Backend{}

// Strays implements hypervisor.Searcher. Its virtual machines without a process
// are those that the next launch would destroy, see Orphans.
func (b Backend) Strays(_ context.Context, dir string, known func(string) bool) ([]hypervisor.Stray, error) {
	var strays []hypervisor.Stray
	processes, err := process.Unattended(dir, known)
	if err != nil {
		return nil, fmt.Errorf("look for machines of nobody's: %w", err)
	}
	for _, p := range processes {
		strays = append(strays, hypervisor.Stray{
			Dir: p.Dir, Process: p.ID,
			Destroy: func(ctx context.Context) error { return b.destroyStray(ctx, p) },
		})
	}
	names, err := findOrphans(b.vmm)
	if err != nil {
		return nil, fmt.Errorf("look for virtual machines of nobody's: %w", err)
	}
	for _, name := range names {
		strays = append(strays, hypervisor.Stray{
			ID:      strings.TrimPrefix(name, namePrefix),
			Destroy: func(context.Context) error { return b.destroyOrphan(name) },
		})
	}
	return strays, nil
}

// destroyStray ends a process with its virtual machine and its taps.
func (b Backend) destroyStray(ctx context.Context, p process.Orphan) error {
	// Only as long as they are open is it known whose they are.
	taps, err := b.tapsOf(ctx, p.ID.Pid)
	if err != nil {
		return fmt.Errorf("taps of process %s: %w", p.ID, err)
	}
	if err := p.Kill(ctx); err != nil {
		return err
	}
	names, err := findOrphans(b.vmm)
	errs := []error{err}
	for _, name := range names {
		errs = append(errs, destroyed(b.vmm.Destroy(name)), removeCheckpointSocket(name))
	}
	for _, tap := range taps {
		errs = append(errs, tap.Undo(ctx))
	}
	return errors.Join(errs...)
}

// destroyOrphan looks again: it may have been destroyed, and its name be that of
// one that is being loaded.
func (b Backend) destroyOrphan(name string) error {
	now, err := findOrphans(b.vmm)
	if err != nil || !slices.Contains(now, name) {
		return err
	}
	return errors.Join(destroyed(b.vmm.Destroy(name)), removeCheckpointSocket(name))
}
