package shim

import (
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor/bhyve"
)

func newBackend() hypervisor.Backend { return bhyve.New() }
