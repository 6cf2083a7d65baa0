// Package host chooses the backend of the system that a program was built for.
package host

import (
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor/qemu"
)

// Backend makes the machines of this system.
func Backend() hypervisor.Backend { return qemu.New() }

// BecomeMachine returns false: QEMU is a program of its own from the start.
func BecomeMachine([]string) (bool, error) { return false, nil }
