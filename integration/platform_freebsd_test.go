package integration

import (
	"testing"

	"github.com/containerd/containerd/v2/pkg/oci"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/lab"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/pattern"
)

// runtimes are those under test. FreeBSD has no reference that runs Linux
// images.
var runtimes = []struct{ name, runtime string }{{"bhyve", lab.RuntimeBhyve}}

// privileged gives a container everything that it can be given.
var privileged = oci.Compose(oci.WithPrivileged, oci.WithCapabilities(lab.Capabilities))

// unpacksModes: containerd 2.4 for FreeBSD loses special mode bits and extended
// attributes when it unpacks an image (pkg/archive/tar_freebsd.go gives
// fchmodat(2) the bits of Go's FileMode).
const unpacksModes = false

// cyclesByDefault is what this is judged by.
const cyclesByDefault = 20

// machineProgram begins the title of a monitor, which names the virtual machine
// and is its only argument.
const machineProgram = "bhyve:"

// machineWord is what tells a container's monitor from the others.
func machineWord(id string) string { return "csb-" + id }

// wantPlace has nothing to check: there are no control groups.
func (r *rig) wantPlace(string) {}

// hostBoot is nothing that a guest could have: the host is no Linux.
func (r *rig) hostBoot() pattern.Boot { return pattern.Boot{BootID: "FreeBSD"} }

// listenAtHostEnd listens on the host, whose own network the link is in.
func (r *rig) listenAtHostEnd(string) sockets { return listen() }

// clients are the programs that there are for FreeBSD.
func clients(*testing.T) []lab.Client { return []lab.Client{lab.NewCtrClient(theLab)} }
