package integration

import (
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/lab"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/pattern"
)

// runtimes are those under test. FreeBSD has no reference that runs Linux
// images.
var runtimes = []struct{ name, runtime string }{{"bhyve", lab.RuntimeBhyve}}

// findMachine is the monitor of a container's machine: a program's title is its
// only argument.
func (r *rig) findMachine(id string) lab.Process {
	r.Helper()
	return r.findProcess("bhyve:", "csb-"+id)
}

// hostBoot is nothing that a guest could have: the host is no Linux.
func (r *rig) hostBoot() pattern.Boot { return pattern.Boot{BootID: "FreeBSD"} }

// listenAtHostEnd listens on the host, whose own network the link is in.
func (r *rig) listenAtHostEnd(string) sockets { return listen() }
