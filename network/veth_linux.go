package network

import (
	"errors"
	"fmt"
	"net"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/netns"
)

// addVeth makes the sandbox's interface in a network namespace: the other end
// takes the place of a tap, and has its name.
func (h *linux) addVeth(r *record) (netlink.Link, error) {
	ns, err := netns.Open(r.NetNS)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	err = netns.Do(ns, func() error {
		if _, err := netlink.LinkByName(r.Interface); err == nil {
			return fmt.Errorf("interface %s is in %s: %w", r.Interface, r.NetNS, errdefs.ErrAlreadyExists)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	err = netlink.LinkAdd(&netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: r.Tap, MTU: r.MTU},
		PeerName:  r.Interface, PeerMTU: uint32(r.MTU), PeerHardwareAddr: net.HardwareAddr(r.MAC), PeerNamespace: netlink.NsFd(ns.Fd()),
	})
	if err != nil {
		return nil, err
	}
	return netlink.LinkByName(r.Tap)
}

// configureVeth sets the interface up, as an agent does in a guest.
func (h *linux) configureVeth(r *record) error {
	ns, err := netns.Open(r.NetNS)
	if err != nil {
		return err
	}
	defer ns.Close()
	return netns.Do(ns, func() error {
		link, err := netlink.LinkByName(r.Interface)
		if err != nil {
			return fmt.Errorf("interface %s in %s: %w", r.Interface, r.NetNS, err)
		}
		one := net.CIDRMask(32, 32)
		gateway := net.IP(r.Gateway.AsSlice())
		return errors.Join(
			netlink.AddrReplace(link, &netlink.Addr{IPNet: &net.IPNet{IP: r.Address.AsSlice(), Mask: one}}),
			netlink.LinkSetUp(link),
			netlink.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Scope: netlink.SCOPE_LINK, Dst: &net.IPNet{IP: gateway, Mask: one}}),
			netlink.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: gateway, Dst: &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}}),
		)
	})
}
