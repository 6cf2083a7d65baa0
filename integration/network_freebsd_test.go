package integration

import (
	"context"
	"fmt"
	"net"
	"os/exec"
	"strings"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network"
)

func testNamespaceOfTheHost(r *rig) { r.inNamespaceOfTheHost(nil) }

func (r *rig) inNamespaceOfTheHost([]string) { r.Skip("FreeBSD has no network namespaces") }

func testNerdctlPublishes(r *rig) { r.Skip("nerdctl's networks are Linux's") }

func testPodNetwork(r *rig) { r.Skip("there is no CRI on FreeBSD") }

// beyond makes the world beyond the lab, which is the host itself: a policy has to
// name it like any other.
func (r *rig) beyond() {
	r.Helper()
	ifconfig := func(args ...string) string {
		r.Helper()
		out, err := exec.CommandContext(context.WithoutCancel(r.ctx), "/sbin/ifconfig", args...).CombinedOutput()
		if err != nil {
			r.Fatalf("ifconfig %q: %v: %s", args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	world := ifconfig("lo", "create")
	r.Cleanup(func() { ifconfig(world, "destroy") })
	for _, addr := range []string{labUplink, friend, foe} {
		ifconfig(world, "inet", addr+"/32", "alias")
	}
	listener, err := net.Listen("tcp4", fmt.Sprintf(":%d", webPort))
	if err != nil {
		r.Fatal(err)
	}
	r.tellAddresses(listener)
}

// seenAs is the address that the world sees a guest by: its own, as no packet
// leaves the host.
func seenAs(i network.Info) string { return i.Address.String() }
