// Package host chooses the backend of the system that a program was built for.
package host

import (
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor/bhyve"
)

// Backend makes the machines of this system.
func Backend() hypervisor.Backend { return bhyve.New() }

// BecomeMachine makes a machine of this process if args, which are os.Args, ask
// for it, and returns false if not. A program that makes machines calls it
// first. See bhyve.Become.
func BecomeMachine(args []string) (bool, error) { return bhyve.Become(args) }
