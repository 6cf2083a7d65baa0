package network

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/netns"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/policy"
)

// patience is longer than anything takes on a busy machine.
const patience = 20 * time.Second

// rig is a host in a network namespace of its own, and a world beyond it with
// some servers.
type rig struct {
	t           *testing.T
	host, world *os.File
	net         *Network
}

// Addresses of the world's: two of the internet (RFC 5737), one of a private
// network. Its servers listen on every one of them.
const (
	friend  = "203.0.113.10"
	foe     = "203.0.113.66"
	private = "192.168.50.10"
	// uplink is the host's own address in the world.
	uplink = "203.0.113.1"
)

func newRig(t *testing.T, p policy.Policy) *rig {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	r := &rig{t: t, host: namespace(t), world: namespace(t)}
	cfg := DefaultConfig()
	cfg.State, cfg.Policy = t.TempDir(), p
	cfg.DNS = []netip.Addr{netip.MustParseAddr(friend)}
	n, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	r.net = n
	r.in(r.host, func() error {
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "uplink"}, PeerName: "world", PeerNamespace: netlink.NsFd(r.world.Fd())}
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
	r.in(r.world, func() error {
		err := errors.Join(up("lo"), up("world", friend+"/24", foe+"/24", private+"/24"))
		link, lerr := netlink.LinkByName("world")
		if lerr != nil {
			return lerr
		}
		// A world that would answer a guest whose address is not translated.
		return errors.Join(err, netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.ParseIP(uplink)}))
	})
	return r
}

func namespace(t *testing.T) *os.File {
	t.Helper()
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

// in runs f in a namespace, and ends the test where it fails.
func (r *rig) in(ns *os.File, f func() error) {
	r.t.Helper()
	if err := netns.Do(ns, f); err != nil {
		r.t.Fatal(err)
	}
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

// guest stands for a virtual machine: a namespace with an interface whose frames
// come out of the sandbox's tap.
type guest struct {
	*Result
	ns *os.File
	// wire is the guest's end of the tap, to write frames to by hand. Each begins
	// with a struct virtio_net_hdr of 10 bytes.
	wire *os.File
}

func (r *rig) add(id string, p *policy.Policy) *Result {
	r.t.Helper()
	var result *Result
	r.in(r.host, func() (err error) {
		result, err = r.net.Add(r.t.Context(), Request{ID: id, Policy: p})
		return err
	})
	return result
}

func (r *rig) del(id string) Released {
	r.t.Helper()
	var released Released
	r.in(r.host, func() (err error) {
		released, err = r.net.Del(r.t.Context(), id)
		return err
	})
	return released
}

// guest adds a network and a guest on it.
func (r *rig) guest(id string, p *policy.Policy) *guest {
	r.t.Helper()
	g := &guest{Result: r.add(id, p), ns: namespace(r.t)}
	r.in(r.host, func() (err error) { g.wire, err = openTap(g.Tap); return err })
	r.run(g)
	return g
}

// run has a guest on its wire.
func (r *rig) run(g *guest) {
	r.t.Helper()
	var inside *os.File
	r.in(g.ns, func() (err error) {
		if inside, err = openTap("eth0"); err != nil {
			return err
		}
		link, err := netlink.LinkByName("eth0")
		if err == nil {
			err = netlink.LinkSetHardwareAddr(link, g.MAC)
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
	go pump(g.wire, inside)
	go pump(inside, g.wire)
	r.t.Cleanup(func() { g.wire.Close(); inside.Close() })
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

// pump copies frames: one read is one frame, and must be one write.
func pump(dst, src *os.File) {
	buf := make([]byte, 128<<10)
	for {
		n, err := src.Read(buf)
		if err != nil {
			return
		}
		dst.Write(buf[:n])
	}
}

// serve answers TCP connections and UDP datagrams to a port of a namespace with
// what it is sent, and returns the address that the peer had.
func (r *rig) serve(ns *os.File, port uint16) {
	r.t.Helper()
	r.in(ns, func() error {
		l, err := net.ListenTCP("tcp4", &net.TCPAddr{Port: int(port)})
		if err != nil {
			return err
		}
		u, err := net.ListenUDP("udp4", &net.UDPAddr{Port: int(port)})
		if err != nil {
			return err
		}
		r.t.Cleanup(func() { l.Close(); u.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() { defer c.Close(); io.Copy(c, c) }()
			}
		}()
		go func() {
			buf := make([]byte, 64<<10)
			for {
				n, from, err := u.ReadFromUDP(buf)
				if err != nil {
					return
				}
				u.WriteToUDP(buf[:n], from)
			}
		}()
		return nil
	})
}

// dial opens a flow from a namespace and sends something there and back.
func (r *rig) dial(ctx context.Context, ns *os.File, network, addr string) (net.Conn, error) {
	var conn net.Conn
	err := netns.Do(ns, func() (err error) {
		// Not the resolver's or the poller's thread: the socket is made in here.
		conn, err = (&net.Dialer{}).DialContext(ctx, network, addr)
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := echo(ctx, conn); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

func echo(ctx context.Context, conn net.Conn) error {
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Now()) })()
	const word = "hello"
	if _, err := conn.Write([]byte(word)); err != nil {
		return err
	}
	buf := make([]byte, len(word))
	if _, err := io.ReadFull(conn, buf); err != nil {
		return err
	}
	if string(buf) != word {
		return fmt.Errorf("answer %q", buf)
	}
	return nil
}

// passes says that a flow can be opened.
func (r *rig) passes(ns *os.File, network, addr string) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	conn, err := r.dial(ctx, ns, network, addr)
	if err != nil {
		r.t.Errorf("%s to %s: %v, want it to pass", network, addr, err)
		return
	}
	conn.Close()
}

// denied says that a flow cannot be opened, by the counter of what was stopped.
func (r *rig) denied(id string, ns *os.File, network, addr string) {
	r.t.Helper()
	r.stopped(id, network+" to "+addr, func(c Counters) uint64 { return c.Denied }, func(ctx context.Context) error {
		conn, err := r.dial(ctx, ns, network, addr)
		if err == nil {
			conn.Close()
		}
		return err
	})
}

// stopped does something until a counter of a sandbox has gone up.
func (r *rig) stopped(id, what string, counter func(Counters) uint64, do func(context.Context) error) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	before := counter(r.counters(id))
	done := make(chan error, 1)
	go func() { done <- do(ctx) }()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case err := <-done:
			if err == nil {
				r.t.Errorf("%s: passed, want it stopped", what)
				return
			}
			done = nil
		case <-tick.C:
			if counter(r.counters(id)) > before {
				return
			}
		case <-ctx.Done():
			r.t.Errorf("%s: was not counted as stopped", what)
			return
		}
	}
}

func (r *rig) counters(id string) Counters {
	r.t.Helper()
	var info *Info
	r.in(r.host, func() (err error) { info, err = r.net.Show(r.t.Context(), id); return err })
	return info.Counters
}
