//go:build linux

package qemu

import (
	"context"
	"fmt"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor/internal/process"
)

var _ hypervisor.Searcher = Backend{}

// Strays implements hypervisor.Searcher. Link, port and memory end with the
// process.
func (Backend) Strays(_ context.Context, dir string, known func(string) bool) ([]hypervisor.Stray, error) {
	processes, err := process.Unattended(dir, known)
	if err != nil {
		return nil, fmt.Errorf("look for machines of nobody's: %w", err)
	}
	var strays []hypervisor.Stray
	for _, p := range processes {
		strays = append(strays, hypervisor.Stray{Dir: p.Dir, Process: p.ID, Destroy: p.Kill})
	}
	return strays, nil
}
