//go:build linux

package agent

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/mdlayher/vsock"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto"
)

// inNetNS runs the rest of the test on a thread in a network namespace of its
// own, which goes with the thread.
func inNetNS(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to make a network namespace")
	}
	runtime.LockOSThread() // never unlocked, so that the thread is not reused
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
}

// Two interfaces of a pair stand for the two ends of the link.
func TestOpenLink(t *testing.T) {
	inNetNS(t)
	// What the guest sends to itself goes through loopback.
	if err := loopbackUp(); err != nil {
		t.Fatal(err)
	}
	pair := &netlink.Veth{
		LinkAttrs:        netlink.LinkAttrs{Name: "host", HardwareAddr: agentproto.HostLinkMAC},
		PeerName:         "guest",
		PeerHardwareAddr: agentproto.GuestLinkMAC,
	}
	if err := netlink.LinkAdd(pair); err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(pair); err != nil {
		t.Fatal(err)
	}
	l, err := openLink(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()

	guest, err := netlink.LinkByName("guest")
	if err != nil {
		t.Fatal(err)
	}
	addrs, err := netlink.AddrList(guest, netlink.FAMILY_ALL)
	if err != nil {
		t.Fatal(err)
	}
	if len(addrs) != 1 || !addrs[0].IP.Equal(agentproto.GuestLinkAddr.AsSlice()) {
		t.Errorf("addresses %v, want only %s", addrs, agentproto.GuestLinkAddr)
	} else if addrs[0].Flags&unix.IFA_F_TENTATIVE != 0 {
		t.Error("the address is still being probed for duplicates")
	}
	neighs, err := netlink.NeighList(guest.Attrs().Index, netlink.FAMILY_V6)
	if err != nil {
		t.Fatal(err)
	}
	permanent := false
	for _, n := range neighs {
		permanent = permanent || n.IP.Equal(agentproto.HostLinkAddr.AsSlice()) &&
			n.HardwareAddr.String() == agentproto.HostLinkMAC.String() && n.State == netlink.NUD_PERMANENT
	}
	if !permanent {
		t.Errorf("neighbours %v: the host is not a permanent one", neighs)
	}

	// The guest itself is not the host.
	addr := netip.AddrPortFrom(agentproto.GuestLinkAddr.WithZone("guest"), uint16(agentproto.PortControl))
	conn, err := net.DialTimeout("tcp6", addr.String(), 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	go l.byPort[agentproto.PortControl][0].Accept() // ends with l
	conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := conn.Read(make([]byte, 1)); err == nil || isTimeout(err) {
		t.Errorf("a connection from the guest itself stays open: %v", err)
	}
}

func TestOpenLinkWithoutInterface(t *testing.T) {
	inNetNS(t)
	if _, err := openLink(t.Context(), false); !errdefs.IsNotFound(err) {
		t.Errorf("got %v; want NotFound", err)
	}
}

func TestIsHost(t *testing.T) {
	tcp := func(addr string) net.Addr { return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(addr)) }
	for _, tc := range []struct {
		addr net.Addr
		want bool
	}{
		{tcp("[fe80::1%eth0]:4000"), true},
		{tcp("[fe80::2%eth0]:4000"), false},
		{tcp("[::1]:4000"), false},
		{tcp("10.0.0.1:4000"), false},
		{&vsock.Addr{ContextID: 2}, true},
		{&vsock.Addr{ContextID: 1}, false},
		{&vsock.Addr{ContextID: 3}, false},
		{&net.UnixAddr{Name: "x"}, false},
	} {
		if got := isHost(tc.addr); got != tc.want {
			t.Errorf("%s: got %v, want %v", tc.addr, got, tc.want)
		}
	}
}

func TestMakeNetNS(t *testing.T) {
	inNetNS(t)
	path := filepath.Join(t.TempDir(), "netns", "sandbox")
	t.Cleanup(func() { unix.Unmount(path, unix.MNT_DETACH) })
	if err := makeNetNS(path); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
		t.Fatalf("what is at %s is no network namespace: %v", path, err)
	}
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	if len(links) != 1 || links[0].Attrs().Flags&net.FlagLoopback == 0 || links[0].Attrs().Flags&net.FlagUp == 0 {
		t.Errorf("interfaces %v, want loopback only, and up", links)
	}
}
