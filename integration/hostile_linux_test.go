package integration

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/lab"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/policy"
)

// TestNetwork is about what a network of ours is to guests, and to clients that
// bring one.
func TestNetwork(t *testing.T) {
	for _, c := range []struct {
		name string
		run  func(*rig)
	}{
		{"hostile guest", testHostileGuest},
		{"ctr with CNI", testCtrCNI},
		{"figures", testFigures},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(newRig(t, lab.RuntimeBhyve)) })
	}
}

func ether(dst, src []byte, etherType uint16, payload ...[]byte) string {
	return hex.EncodeToString(slices.Concat(dst, src, binary.BigEndian.AppendUint16(nil, etherType), slices.Concat(payload...)))
}

// datagram is UDP in IPv4. fragment is the word of flags and offset.
func datagram(src, dst netip.Addr, port, fragment uint16) []byte {
	const ttl = 64
	be := binary.BigEndian.AppendUint16
	udp := slices.Concat(be(nil, 4000), be(nil, port), be(nil, 16), be(nil, 0), []byte("01234567"))
	h := slices.Concat([]byte{0x45, 0}, be(nil, uint16(20+len(udp))), be(nil, 7), be(nil, fragment), []byte{ttl, unix.IPPROTO_UDP, 0, 0}, src.AsSlice(), dst.AsSlice())
	var sum uint32
	for i := 0; i < len(h); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(h[i:]))
	}
	sum = sum>>16 + sum&0xffff
	binary.BigEndian.PutUint16(h[10:], ^uint16(sum+sum>>16))
	return append(h, udp...)
}

// claim is an ARP answer: an address is at a hardware address.
func claim(mac []byte, addr netip.Addr) []byte {
	return slices.Concat([]byte{0, 1, 8, 0, 6, 4, 0, 2}, mac, addr.AsSlice(), mac, addr.AsSlice())
}

// testHostileGuest has a container with raw sockets send what it may not, out of
// its machine: nothing gets through, each frame is counted, and it is logged.
func testHostileGuest(r *rig) {
	r.beyond()
	flags, n := r.withNetwork(policy.Policy{Allow: []policy.Rule{{Peers: []string{"0.0.0.0/0"}}}})
	bad, victim := r.start(flags), r.start(flags)
	b, v := r.networkOf(n, bad), r.networkOf(n, victim)
	bridge, err := netlink.LinkByName(b.Bridge)
	if err != nil {
		r.Fatal(err)
	}
	gateway, everybody := bridge.Attrs().HardwareAddr, net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	stranger, outside := net.HardwareAddr{2, 0, 0, 0, 0, 0x66}, netip.MustParseAddr(friend)
	const port, ip, arp, ip6 = 4444, unix.ETH_P_IP, unix.ETH_P_ARP, unix.ETH_P_IPV6
	reached := r.listenUDP(port)
	stopped := r.stoppedPackets(n)
	routers := []byte{0x60, 0, 0, 0, 0, 16, unix.IPPROTO_ICMPV6, 255}
	routers = slices.Concat(routers, netip.MustParseAddr("fe80::bad").AsSlice(), netip.MustParseAddr("ff02::1").AsSlice(), []byte{134, 0, 0, 0, 64, 0, 0xff, 0xff}, make([]byte, 8))
	toLink := slices.Concat([]byte{0x60, 0, 0, 0, 0, 8, unix.IPPROTO_UDP, 64}, netip.MustParseAddr("fe80::bad").AsSlice(), agentproto.HostLinkAddr.AsSlice(), make([]byte, 8))
	for _, c := range []struct {
		what   string
		why    string
		frames []string
	}{
		{"another hardware address", "spoofed", []string{ether(gateway, stranger, ip, datagram(b.Address, b.Gateway, port, 0))}},
		{"another source", "spoofed", []string{ether(gateway, b.MAC, ip, datagram(outside, b.Gateway, port, 0))}},
		{"the victim's source", "spoofed", []string{ether(gateway, b.MAC, ip, datagram(v.Address, b.Gateway, port, 0))}},
		{"the victim itself", "spoofed", []string{ether(v.MAC, v.MAC, ip, datagram(v.Address, v.Address, port, 0))}},
		{"straight to the victim", "spoofed", []string{ether(v.MAC, b.MAC, ip, datagram(b.Address, v.Address, port, 0))}},
		{"to the bridge's own protocols", "spoofed", []string{ether(net.HardwareAddr{1, 0x80, 0xc2, 0, 0, 0xe}, b.MAC, ip, datagram(b.Address, b.Gateway, port, 0))}},
		{"the gateway is here", "spoofed", []string{ether(everybody, b.MAC, arp, claim(b.MAC, b.Gateway))}},
		{"the victim is here", "spoofed", []string{ether(gateway, b.MAC, arp, claim(b.MAC, v.Address))}},
		{"IPv6 router advertisement", "spoofed", []string{ether(net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, b.MAC, ip6, routers)}},
		{"the link's host side", "spoofed", []string{ether(agentproto.HostLinkMAC, b.MAC, ip6, toLink)}},
		{"the host's services", "denied", []string{ether(gateway, b.MAC, ip, datagram(b.Address, b.Gateway, port, 0))}},
		{"the host by its other address", "denied", []string{ether(gateway, b.MAC, ip, datagram(b.Address, netip.MustParseAddr(labUplink), port, 0))}},
		{"the victim by way of the gateway", "denied", []string{ether(gateway, b.MAC, ip, datagram(b.Address, v.Address, port, 0))}},
		{"fragments", "denied", []string{
			ether(gateway, b.MAC, ip, datagram(b.Address, b.Gateway, port, 0x2000)),
			ether(gateway, b.MAC, ip, datagram(b.Address, b.Gateway, port, 2)),
		}},
	} {
		before := count(r.networkOf(n, bad).Counters, c.why)
		r.mustOK(r.exec(bad, strings.NewReader(strings.Join(c.frames, "\n")+"\n"), nil, nil, "/bin/probe", "frames", "eth0"))
		r.eventually(commandTimeout, func() error {
			if got := count(r.networkOf(n, bad).Counters, c.why); got == before {
				return fmt.Errorf("%s: was not counted as %s", c.what, c.why)
			}
			return nil
		})
	}
	select {
	case from := <-reached:
		r.Errorf("the host was reached from %s", from)
	default:
	}
	neighbours, err := netlink.NeighList(bridge.Attrs().Index, unix.AF_INET)
	if err != nil {
		r.Fatal(err)
	}
	for _, nb := range neighbours {
		if slices.Equal(nb.HardwareAddr, stranger) || slices.Equal(nb.HardwareAddr, net.HardwareAddr(b.MAC)) && !nb.IP.Equal(b.Address.AsSlice()) {
			r.Errorf("the host believes that %s is at %s", nb.IP, nb.HardwareAddr)
		}
	}
	for _, why := range []string{"denied", "spoofed"} {
		r.eventually(commandTimeout, func() error {
			if !stopped(b.ID, why) {
				return fmt.Errorf("nothing was logged as %s by %s", why, b.ID)
			}
			return nil
		})
	}
	// What they may send still passes; what is denied to one is not to the other.
	fetch := func(id string) lab.Result {
		r.Helper()
		return r.exec(id, nil, nil, nil, "/bin/probe", "fetch", "http://"+friend+"/")
	}
	r.expect(fetch(bad), 0, labUplink+"\n")
	if err := n.SetPolicy(r.ctx, b.ID, policy.Policy{Deny: []policy.Rule{{Peers: []string{friend}}}, Allow: n.Config().Policy.Allow}); err != nil {
		r.Fatal(err)
	}
	if result := fetch(bad); result.Code == 0 {
		r.Errorf("reached what is denied: %s", result)
	}
	r.expect(fetch(victim), 0, labUplink+"\n")
}

func count(c network.Counters, why string) uint64 {
	if why == "denied" {
		return c.Denied
	}
	return c.Spoofed
}

// listenUDP tells who sends something to a port of the host's.
func (r *rig) listenUDP(port int) <-chan string {
	r.Helper()
	conn, err := net.ListenUDP("udp", &net.UDPAddr{Port: port})
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { conn.Close() })
	reached := make(chan string, 16)
	go func() {
		for {
			_, from, err := conn.ReadFrom(make([]byte, 64))
			if err != nil {
				return
			}
			select {
			case reached <- from.String():
			default:
			}
		}
	}()
	return reached
}

// stoppedPackets reads the network's log, and says whether it has had a packet of
// a sandbox.
func (r *rig) stoppedPackets(n *network.Network) func(id, why string) bool {
	ctx, cancel := context.WithCancel(r.ctx)
	logged := make(chan network.Stopped, 64)
	done := make(chan error, 1)
	go func() {
		done <- n.Stopped(ctx, func(s network.Stopped) {
			select {
			case logged <- s:
			case <-ctx.Done():
			}
		})
	}()
	r.Cleanup(func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			r.Error(err)
		}
	})
	var seen []network.Stopped
	return func(id, why string) bool {
		for {
			select {
			case s := <-logged:
				seen = append(seen, s)
				continue
			default:
			}
			return slices.ContainsFunc(seen, func(s network.Stopped) bool { return s.ID == id && s.Why == why })
		}
	}
}
