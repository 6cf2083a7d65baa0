package shim

import (
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor/qemu"
)

func newBackend() hypervisor.Backend { return qemu.New() }

// BecomeMachine returns false: QEMU is a program of its own from the start.
func BecomeMachine([]string) (bool, error) { return false, nil }
