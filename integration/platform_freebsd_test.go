package integration

import (
	"github.com/containerd/containerd/v2/pkg/oci"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/lab"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/pattern"
)

// runtimes are those under test. FreeBSD has no reference that runs Linux
// images.
var runtimes = []struct{ name, runtime string }{{"bhyve", lab.RuntimeBhyve}}

// privileged gives a container everything that it can be given. By containerd's
// own means there would be no capabilities: it asks the host for those.
var privileged = oci.Compose(oci.WithPrivileged, oci.WithCapabilities([]string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_KILL", "CAP_MKNOD", "CAP_NET_ADMIN", "CAP_NET_RAW",
	"CAP_SETGID", "CAP_SETUID", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_CHROOT", "CAP_SYS_MODULE",
	"CAP_SYS_PTRACE", "CAP_SYS_RAWIO", "CAP_SYS_RESOURCE",
}))

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
