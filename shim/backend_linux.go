package shim

import (
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor/qemu"
)

func newBackend() hypervisor.Backend { return qemu.New() }
