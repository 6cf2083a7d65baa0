package shim

import (
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor/bhyve"
)

func newBackend() hypervisor.Backend { return bhyve.New() }

// BecomeMachine makes a machine of this process if args, which are os.Args, ask
// for it, and returns false if not. See bhyve.Become.
func BecomeMachine(args []string) (bool, error) { return bhyve.Become(args) }
