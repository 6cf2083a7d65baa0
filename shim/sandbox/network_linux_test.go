package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/vishvananda/netlink"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/netns"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/join"
)

// clientsNetNS is a network namespace as a client has made it, and its path.
func clientsNetNS(t *testing.T) (*os.File, string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	ns, err := netns.New()
	must(t, err)
	t.Cleanup(func() { ns.Close() })
	return ns, fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns.Fd())
}

func inNetNS(path string) func(*specs.Spec) {
	return func(s *specs.Spec) {
		s.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.NetworkNamespace, Path: path}}
	}
}

// A namespace is one machine's. The one that comes second is refused, and does
// not take the first one's tap along.
func TestNetworkNamespaceOfAnotherMachine(t *testing.T) {
	ns, path := clientsNetNS(t)
	first, err := join.Open(path)
	must(t, err)
	defer first.Close()
	_, err = first.AddTap()
	must(t, err)

	b := newBed(t)
	if _, err := b.Create(b.within(), b.request("c1", inNetNS(path))); !errdefs.IsAlreadyExists(err) {
		t.Errorf("create: %v, want already exists", err)
	}
	must(t, netns.Do(ns, func() error {
		_, err := netlink.LinkByName(join.Tap)
		return err
	}))
}

// A network that the guest did not take is not taken for one that it has: the
// next container to start has it configured.
func TestNetworkThatTheGuestDidNotTake(t *testing.T) {
	ns, path := clientsNetNS(t)
	b := newBed(t)
	c := b.create(b.request("c1", inNetNS(path)))
	must(t, netns.Do(ns, func() error {
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "veth0"}
		return errors.Join(netlink.LinkAdd(veth), netlink.LinkSetUp(veth))
	}))

	var asked atomic.Int32
	b.agent().on("network.Configure", func(context.Context) error {
		if asked.Add(1) == 1 {
			return errdefs.ErrUnavailable
		}
		return nil
	})
	if err := c.Start(b.within(), ""); err == nil {
		t.Fatal("a container started whose network was not taken")
	}
	must(t, c.Start(b.within(), ""))
	if n := asked.Load(); n != 2 {
		t.Errorf("the guest was told of its network %d times, want 2", n)
	}
}
