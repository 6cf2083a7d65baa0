// Command containerd-shim-bhyve-v2 is the containerd shim io.containerd.bhyve.v2.
// containerd starts it; see the README for how. An administrator may, too, with
// the argument "check": it says what this host lacks.
package main

import (
	"context"
	"fmt"
	"os"

	cshim "github.com/containerd/containerd/v2/pkg/shim"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor/host"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/check"
)

func main() {
	ctx := context.Background()
	if len(os.Args) == 2 && os.Args[1] == "check" {
		os.Exit(check.Run(ctx, os.Stdout))
	}
	manager := shim.Manager{}
	handled, err := host.BecomeMachine(os.Args)
	if !handled {
		handled, err = shim.RunLegacy(ctx, manager, os.Args)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %s", manager.Name(), err)
		os.Exit(1)
	}
	if handled {
		return
	}
	cshim.RunShim(ctx, manager, func(c *cshim.Config) {
		// The machine is this process's own child and is waited for by its
		// backend; nothing else is ever reparented to it.
		c.NoReaper = true
		c.NoSubreaper = true
	})
}
