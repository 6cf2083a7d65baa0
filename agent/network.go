//go:build linux

package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto"
	agentv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto/v1"
)

// network is the Network service: the containers' network namespace, beside the
// agent's own which has the link.
type network struct {
	// netns is the containers' namespace, files is where the files go.
	netns string
	files func(name string) string

	mu sync.Mutex
}

func newNetwork() *network {
	return &network{netns: agentproto.SandboxNetNS, files: agentproto.SandboxFile}
}

// Configure implements agentv1.NetworkService.
func (n *network) Configure(_ context.Context, r *agentv1.ConfigureNetworkRequest) (*emptypb.Empty, error) {
	ifaces, err := parseInterfaces(r.Interfaces)
	if err != nil {
		return nil, fmt.Errorf("network: %w", err)
	}
	routes, err := parseRoutes(r.Routes, ifaces)
	if err != nil {
		return nil, fmt.Errorf("network: %w", err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, i := range ifaces {
		if err := n.moveIn(i); err != nil {
			return nil, fmt.Errorf("network: interface %s: %w", i.name, err)
		}
	}
	if err := inNamespaces(func() error { return configureNetwork(ifaces, routes) }, n.netns); err != nil {
		return nil, fmt.Errorf("network: %w", err)
	}
	for name, content := range map[string][]byte{"resolv.conf": resolvConf(r.Dns), "hosts": hostsFile(r)} {
		if content == nil {
			continue
		}
		if err := writeInPlace(n.files(name), content); err != nil {
			return nil, fmt.Errorf("network: %w", err)
		}
	}
	return &emptypb.Empty{}, nil
}

// moveIn takes a device that is still among the machine's own to the containers.
func (n *network) moveIn(i iface) error {
	nic, err := findNIC(i.device)
	if err != nil || nic == nil {
		// Not here: it has been moved already, or configureNetwork will say that it
		// does not exist.
		return err
	}
	ns, err := os.Open(n.netns)
	if err != nil {
		return err
	}
	defer ns.Close()
	if err := netlink.LinkSetNsFd(nic, int(ns.Fd())); err != nil {
		return fmt.Errorf("give it to the containers: %w", err)
	}
	return nil
}

// iface is an Interface that has been read.
type iface struct {
	name        string
	device, mac net.HardwareAddr
	mtu         int
	addrs       []*netlink.Addr
	// nic is set while it is configured.
	nic netlink.Link
}

// maxIfname is IFNAMSIZ less a NUL.
const maxIfname = unix.IFNAMSIZ - 1

func parseInterfaces(all []*agentv1.Interface) ([]iface, error) {
	var ifaces []iface
	for _, r := range all {
		i := iface{name: r.GetName(), device: r.GetDevice(), mac: r.GetMac(), mtu: int(r.GetMtu())}
		switch {
		case i.name == "" || i.name == "lo" || len(i.name) > maxIfname || strings.ContainsAny(i.name, "/ \t\n:") || strings.HasPrefix(i.name, "."):
			return nil, fmt.Errorf("interface name %q: %w", i.name, errdefs.ErrInvalidArgument)
		case len(i.device) != 6 || len(i.mac) != 6 && len(i.mac) != 0:
			return nil, fmt.Errorf("interface %s: address of %d bytes, new one of %d: want 6: %w", i.name, len(i.device), len(i.mac), errdefs.ErrInvalidArgument)
		case bytes.Equal(i.device, agentproto.GuestLinkMAC) || bytes.Equal(i.mac, agentproto.GuestLinkMAC):
			return nil, fmt.Errorf("interface %s: that address is the link's: %w", i.name, errdefs.ErrInvalidArgument)
		case slices.ContainsFunc(ifaces, func(o iface) bool { return o.name == i.name || bytes.Equal(o.device, i.device) }):
			return nil, fmt.Errorf("interface %s is named twice: %w", i.name, errdefs.ErrInvalidArgument)
		}
		for _, text := range r.Addresses {
			prefix, err := netip.ParsePrefix(text)
			if err != nil {
				return nil, fmt.Errorf("interface %s: %w: %w", i.name, err, errdefs.ErrInvalidArgument)
			}
			addr := &netlink.Addr{IPNet: ipNet(prefix)}
			if prefix.Addr().Is6() {
				// Whoever gave it out has seen to it that it is the only one.
				addr.Flags = unix.IFA_F_NODAD
			}
			i.addrs = append(i.addrs, addr)
		}
		ifaces = append(ifaces, i)
	}
	return ifaces, nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// route is a Route that has been read.
type route struct {
	netlink.Route
	iface string
}

func parseRoutes(all []*agentv1.Route, ifaces []iface) ([]route, error) {
	var routes []route
	for _, r := range all {
		bad := func(err error) error {
			return fmt.Errorf("route to %q: %w: %w", r.GetDestination(), err, errdefs.ErrInvalidArgument)
		}
		dst, err := netip.ParsePrefix(r.GetDestination())
		if err != nil {
			return nil, bad(err)
		}
		if !slices.ContainsFunc(ifaces, func(i iface) bool { return i.name == r.Interface }) {
			return nil, bad(fmt.Errorf("no interface %q", r.Interface))
		}
		out := route{iface: r.Interface, Route: netlink.Route{Dst: ipNet(dst.Masked()), Priority: int(r.Metric)}}
		for _, a := range []struct {
			text string
			to   *net.IP
		}{{r.Gateway, &out.Gw}, {r.Source, &out.Src}} {
			if a.text == "" {
				continue
			}
			addr, err := netip.ParseAddr(a.text)
			if err != nil {
				return nil, bad(err)
			}
			*a.to = addr.AsSlice()
		}
		switch {
		case out.Gw == nil:
			out.Scope = netlink.SCOPE_LINK
		case r.OnLink:
			out.Flags = int(netlink.FLAG_ONLINK)
		}
		routes = append(routes, out)
	}
	// Those on an interface itself before those whose gateways they lead to.
	slices.SortStableFunc(routes, func(a, b route) int { return len(a.Gw) - len(b.Gw) })
	return routes, nil
}

// configureNetwork makes the thread's network namespace what it is told.
func configureNetwork(ifaces []iface, routes []route) error {
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	for n := range ifaces {
		i := &ifaces[n]
		at := slices.IndexFunc(links, func(l netlink.Link) bool { return bytes.Equal(l.Attrs().HardwareAddr, i.device) })
		if at < 0 {
			return fmt.Errorf("interface %s: no device with address %s: %w", i.name, i.device, errdefs.ErrNotFound)
		}
		i.nic = links[at]
	}
	for _, l := range links {
		if l.Attrs().Flags&net.FlagLoopback != 0 {
			continue
		}
		// Addresses and routes go with it. What is wanted of them comes back.
		if err := netlink.LinkSetDown(l); err != nil {
			return fmt.Errorf("interface %s: set down: %w", l.Attrs().Name, err)
		}
		if err := flushAddresses(l); err != nil {
			return fmt.Errorf("interface %s: %w", l.Attrs().Name, err)
		}
	}
	for _, i := range ifaces {
		if err := i.configure(); err != nil {
			return fmt.Errorf("interface %s: %w", i.name, err)
		}
	}
	for _, r := range routes {
		at := slices.IndexFunc(ifaces, func(i iface) bool { return i.name == r.iface })
		r.LinkIndex = ifaces[at].nic.Attrs().Index
		if err := netlink.RouteReplace(&r.Route); err != nil {
			return fmt.Errorf("route to %s: %w", r.Dst, err)
		}
	}
	return nil
}

func flushAddresses(l netlink.Link) error {
	addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		// Link-local ones of IPv6 go by themselves when it is set down.
		if err := netlink.AddrDel(l, &a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("remove address %s: %w", a.IPNet, err)
		}
	}
	return nil
}

// configure sets up a device that is down.
func (i iface) configure() error {
	attrs := i.nic.Attrs()
	if attrs.Name != i.name {
		if err := netlink.LinkSetName(i.nic, i.name); err != nil {
			return fmt.Errorf("rename %s: %w", attrs.Name, err)
		}
	}
	// Tell everybody of an address when it comes: they may know the one that had
	// it before.
	notify := filepath.Join("/proc/sys/net/ipv4/conf", i.name, "arp_notify")
	if err := os.WriteFile(notify, []byte("1"), 0); err != nil {
		return err
	}
	if len(i.mac) > 0 && !bytes.Equal(i.mac, attrs.HardwareAddr) {
		if err := netlink.LinkSetHardwareAddr(i.nic, i.mac); err != nil {
			return fmt.Errorf("set address %s: %w", i.mac, err)
		}
	}
	if i.mtu > 0 {
		if err := netlink.LinkSetMTU(i.nic, i.mtu); err != nil {
			return fmt.Errorf("set MTU %d: %w", i.mtu, err)
		}
	}
	for _, a := range i.addrs {
		if err := netlink.AddrReplace(i.nic, a); err != nil {
			return fmt.Errorf("add address %s: %w", a.IPNet, err)
		}
	}
	if err := netlink.LinkSetUp(i.nic); err != nil {
		return fmt.Errorf("set up: %w", err)
	}
	return nil
}

// resolvConf is a resolv.conf(5), nil for none.
func resolvConf(d *agentv1.DNS) []byte {
	if d == nil {
		return nil
	}
	var b bytes.Buffer
	for _, s := range d.Servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	for _, line := range []struct {
		key   string
		words []string
	}{{"search", d.Search}, {"options", d.Options}} {
		if len(line.words) > 0 {
			fmt.Fprintf(&b, "%s %s\n", line.key, strings.Join(line.words, " "))
		}
	}
	return b.Bytes()
}

// hostsFile is a hosts(5), nil where there is no interface yet.
func hostsFile(r *agentv1.ConfigureNetworkRequest) []byte {
	if len(r.Interfaces) == 0 {
		return nil
	}
	b := bytes.NewBufferString(agentproto.LocalHosts)
	for _, e := range r.Hosts {
		fmt.Fprintf(b, "%s\t%s\n", e.GetAddress(), strings.Join(e.GetNames(), " "))
	}
	return b.Bytes()
}

// writeInPlace changes a file that may be mounted into containers, which go on
// seeing the same file.
func writeInPlace(path string, content []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return os.WriteFile(path, content, 0o644)
}
