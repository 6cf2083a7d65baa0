package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/netns"
)

// What a frame has before it on a tap (IFF_VNET_HDR): no offloads.
var frameHeader = make([]byte, 10)

// limitedTo is a bandwidth, in bytes a second, far below what guests have without one.
const limitedTo = 1 << 20

// whyNoBandwidth is empty: nftables has what it takes.
func whyNoBandwidth() string { return "" }

// Whatever does not bear the guest's own addresses is stopped at the tap.
var counterOf = map[crime]func(Counters) uint64{
	forged: spoofed, disguised: spoofed, direct: spoofed, lie: spoofed, tagged: spoofed,
	martian: denied, forbidden: denied,
}

// place is a network namespace.
type place struct{ ns *os.File }

func (p *place) dial(ctx context.Context, network, addr string) (conn net.Conn, err error) {
	// Not the resolver's or the poller's thread: the socket is made in here.
	err = netns.Do(p.ns, func() error { conn, err = new(net.Dialer).DialContext(ctx, network, addr); return err })
	return conn, err
}

func (p *place) listen(port uint16) (l net.Listener, err error) {
	err = netns.Do(p.ns, func() error { l, err = net.ListenTCP("tcp4", &net.TCPAddr{Port: int(port)}); return err })
	return l, err
}

func (p *place) listenPacket(port uint16) (u net.PacketConn, err error) {
	err = netns.Do(p.ns, func() error { u, err = net.ListenUDP("udp4", &net.UDPAddr{Port: int(port)}); return err })
	return u, err
}

// runIn runs the tests where they can have hosts of their own.
func runIn(m *testing.M) int { return m.Run() }

// try runs f on the host.
func (r *rig) try(f func() error) error { return netns.Do(r.host.ns, f) }

func (r *rig) build() {
	r.t.Helper()
	if os.Getuid() != 0 {
		r.t.Skip("needs root: makes network namespaces")
	}
	r.host, r.world = r.place(), r.place()
	r.in(func() error {
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "uplink"}, PeerName: "world", PeerNamespace: netlink.NsFd(r.world.ns.Fd())}
		if err := netlink.LinkAdd(veth); err != nil {
			return err
		}
		if err := errors.Join(up("lo"), up("uplink", uplink+"/24", "192.168.50.1/24")); err != nil {
			return err
		}
		// Everything else is out there, too: what is denied is not stopped for want of
		// a route.
		return netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP(friend)})
	})
	err := netns.Do(r.world.ns, func() error {
		err := errors.Join(up("lo"), up("world", friend+"/24", foe+"/24", private+"/24"))
		link, lerr := netlink.LinkByName("world")
		if lerr != nil {
			return lerr
		}
		// A world that would answer a guest whose address is not translated.
		return errors.Join(err, netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.ParseIP(uplink)}))
	})
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) place() *place {
	ns, err := netns.New()
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { ns.Close() })
	return &place{ns}
}

func up(name string, addrs ...string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	for _, a := range addrs {
		addr, err := netlink.ParseAddr(a)
		if err == nil {
			err = netlink.AddrAdd(link, addr)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", a, err)
		}
	}
	return netlink.LinkSetUp(link)
}

// plug gives a guest its place, and its end of the tap if it has none, and returns
// that of its interface.
func (r *rig) plug(g *guest) (inside *os.File) {
	r.t.Helper()
	g.place = r.place()
	if g.wire == nil {
		r.in(func() (err error) { g.wire, err = openTap(g.Tap); return err })
	}
	err := netns.Do(g.ns, func() (err error) {
		if inside, err = openTap("eth0"); err != nil {
			return err
		}
		link, err := netlink.LinkByName("eth0")
		if err == nil {
			err = netlink.LinkSetHardwareAddr(link, net.HardwareAddr(g.MAC))
		}
		if err == nil {
			err = errors.Join(up("lo"), up("eth0", g.Address.String()+"/32"))
		}
		if err != nil {
			return err
		}
		gateway := net.IP(g.Gateway.AsSlice())
		return errors.Join(
			netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Scope: netlink.SCOPE_LINK, Dst: &net.IPNet{IP: gateway, Mask: net.CIDRMask(32, 32)}}),
			netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: gateway}))
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return inside
}

// port is a machine's own tap, open and in another namespace.
func (r *rig) port(g *guest) *Port {
	r.t.Helper()
	machine := r.place().ns
	const name = "port"
	if err := netns.Do(machine, func() (err error) { g.wire, err = openTap(name); return err }); err != nil {
		r.t.Fatal(err)
	}
	return &Port{NetNS: fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), machine.Fd()), Tap: name}
}

func openTap(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	req, err := unix.NewIfreq(name)
	if err == nil {
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// leftOnHost is links, chains, sets, counters and elements of maps.
func (r *rig) leftOnHost() (all []string, err error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, err
	}
	for _, l := range links {
		if strings.HasPrefix(l.Attrs().Name, tapPrefix) && l.Type() != "bridge" {
			all = append(all, "link "+l.Attrs().Name)
		}
	}
	c, err := nftables.New()
	if err != nil {
		return nil, err
	}
	tables, err := c.ListTables()
	if err != nil {
		return nil, err
	}
	for _, t := range tables {
		sets, err := c.GetSets(t)
		if err != nil {
			return nil, err
		}
		for _, s := range sets {
			elems, err := c.GetSetElements(s)
			if err != nil {
				return nil, err
			}
			if len(elems) > 0 || strings.Contains(s.Name, "/") {
				all = append(all, fmt.Sprintf("set %s with %d elements", s.Name, len(elems)))
			}
		}
		objs, err := c.GetNamedObjects(t)
		if err != nil {
			return nil, err
		}
		if len(objs) > 0 {
			all = append(all, fmt.Sprintf("%d counters", len(objs)))
		}
	}
	names, err := r.net.host.(*linux).rules.Sandboxes()
	for _, name := range names {
		all = append(all, "rules "+name)
	}
	return all, err
}

// noNeighbour is an error if the host has learned an address.
func (r *rig) noNeighbour(mac net.HardwareAddr) error {
	for _, family := range []int{unix.AF_INET, unix.AF_BRIDGE} {
		neighbours, err := netlink.NeighList(0, family)
		if err != nil {
			return err
		}
		for _, n := range neighbours {
			if n.HardwareAddr.String() == mac.String() {
				return errors.New("the host has learned " + n.String())
			}
		}
	}
	return nil
}

// damages are what an administrator may do to a sandbox's tap and rules.
func damages(tap string) map[string]func() error {
	link := func(f func(netlink.Link) error) func() error {
		return func() error {
			l, err := netlink.LinkByName(tap)
			if err != nil {
				return err
			}
			return f(l)
		}
	}
	return map[string]func() error{
		"the tap is gone":              link(netlink.LinkDel),
		"the tap is down":              link(netlink.LinkSetDown),
		"the tap is no private member": link(func(l netlink.Link) error { return netlink.LinkSetIsolated(l, false) }),
		"a firewall was reloaded": func() error {
			c, err := nftables.New()
			if err != nil {
				return err
			}
			c.FlushRuleset()
			return c.Flush()
		},
	}
}

// strayTap makes a tap of the network's that has no record.
func (r *rig) strayTap(name string) error {
	return netlink.LinkAdd(&netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: name}, Mode: netlink.TUNTAP_MODE_TAP})
}
