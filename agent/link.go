//go:build linux

package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"github.com/mdlayher/vsock"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto"
)

// link is the listeners of every port, on each way that the host may come.
type link struct {
	byPort map[uint32][]net.Listener
}

// openLink listens on all ports: over vsock where told to, and on the link's
// interface where there is one. NotFound if there is neither.
func openLink(ctx context.Context, overVsock bool) (_ *link, retErr error) {
	l := &link{byPort: map[uint32][]net.Listener{}}
	defer func() {
		if retErr != nil {
			l.Close()
		}
	}()
	ports := []uint32{agentproto.PortControl, agentproto.PortStdio, agentproto.PortNinep, agentproto.PortForward}

	if overVsock {
		for _, port := range ports {
			ln, err := vsock.ListenContextID(unix.VMADDR_CID_ANY, port, nil)
			if err != nil {
				return nil, fmt.Errorf("link: listen on vsock port %d: %w", port, err)
			}
			l.byPort[port] = append(l.byPort[port], fromHostOnly{ln})
		}
	}

	nic, err := findNIC(agentproto.GuestLinkMAC)
	if err != nil {
		return nil, fmt.Errorf("link: %w", err)
	}
	if nic == nil && len(l.byPort) == 0 {
		return nil, fmt.Errorf("link: no interface with address %s and no vsock: %w", agentproto.GuestLinkMAC, errdefs.ErrNotFound)
	}
	if nic == nil {
		return l, nil
	}
	if err := configureNIC(nic); err != nil {
		return nil, fmt.Errorf("link: interface %s: %w", nic.Attrs().Name, err)
	}
	// The host has gone when the machine has: there is nothing that keep-alive
	// probes could find out, and they would wake an idle machine.
	lc := net.ListenConfig{KeepAlive: -1}
	for _, port := range ports {
		addr := netip.AddrPortFrom(agentproto.GuestLinkAddr.WithZone(nic.Attrs().Name), uint16(port))
		ln, err := lc.Listen(ctx, "tcp6", addr.String())
		if err != nil {
			return nil, fmt.Errorf("link: %w", err)
		}
		l.byPort[port] = append(l.byPort[port], fromHostOnly{ln})
	}
	return l, nil
}

// Close ends all listening. Accepted connections stay.
func (l *link) Close() error {
	var errs []error
	for _, listeners := range l.byPort {
		for _, ln := range listeners {
			if err := ln.Close(); !errors.Is(err, net.ErrClosed) {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

// haveVsock says whether there is an AF_VSOCK transport to a host. Without one
// the device is absent or has no context id of its own.
func haveVsock() bool {
	cid, err := vsock.ContextID()
	return err == nil && cid > unix.VMADDR_CID_HOST && cid != unix.VMADDR_CID_ANY
}

// fromHostOnly drops connections that do not come from the host: a process in
// the guest's root namespace could otherwise speak to its own agent.
type fromHostOnly struct{ net.Listener }

func (l fromHostOnly) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil || isHost(conn.RemoteAddr()) {
			return conn, err
		}
		conn.Close()
	}
}

func isHost(addr net.Addr) bool {
	switch a := addr.(type) {
	case *net.TCPAddr:
		return a.AddrPort().Addr().WithZone("") == agentproto.HostLinkAddr
	case *vsock.Addr:
		return a.ContextID == unix.VMADDR_CID_HOST
	}
	return false
}

func findNIC(mac net.HardwareAddr) (netlink.Link, error) {
	nics, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	for _, nic := range nics {
		if bytes.Equal(nic.Attrs().HardwareAddr, mac) {
			return nic, nil
		}
	}
	return nil, nil
}

// linkSysctls keep the interface to exactly the one address that it is given:
// no address of the kernel's own choosing (addr_gen_mode 1 is
// IN6_ADDR_GEN_MODE_NONE), no probing for duplicates, no router.
var linkSysctls = []struct{ name, value string }{
	{"addr_gen_mode", "1"},
	{"accept_dad", "0"},
	{"accept_ra", "0"},
	{"router_solicitations", "0"},
}

func configureNIC(nic netlink.Link) error {
	attrs := nic.Attrs()
	for _, s := range linkSysctls {
		path := filepath.Join("/proc/sys/net/ipv6/conf", attrs.Name, s.name)
		if err := os.WriteFile(path, []byte(s.value), 0); err != nil {
			return err
		}
	}
	if err := netlink.LinkSetUp(nic); err != nil {
		return fmt.Errorf("set up: %w", err)
	}
	addr := &netlink.Addr{
		IPNet: &net.IPNet{IP: agentproto.GuestLinkAddr.AsSlice(), Mask: net.CIDRMask(64, 128)},
		Flags: unix.IFA_F_NODAD,
		Scope: unix.RT_SCOPE_LINK,
	}
	if err := netlink.AddrReplace(nic, addr); err != nil {
		return fmt.Errorf("add address %s: %w", addr, err)
	}
	neigh := &netlink.Neigh{
		LinkIndex:    attrs.Index,
		Family:       unix.AF_INET6,
		State:        netlink.NUD_PERMANENT,
		IP:           agentproto.HostLinkAddr.AsSlice(),
		HardwareAddr: agentproto.HostLinkMAC,
	}
	if err := netlink.NeighSet(neigh); err != nil {
		return fmt.Errorf("add neighbour %s: %w", neigh, err)
	}
	return nil
}

func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("set up loopback: %w", err)
	}
	return nil
}
