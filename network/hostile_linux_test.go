package network

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/policy"
)

// vnetHeader precedes each frame on a tap (IFF_VNET_HDR): no offloads.
var vnetHeader = make([]byte, 10)

var everybody = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

func be16(n uint16) []byte { return binary.BigEndian.AppendUint16(nil, n) }

func frame(dst, src net.HardwareAddr, etherType uint16, payload []byte) []byte {
	return slices.Concat(vnetHeader, dst, src, be16(etherType), payload)
}

// ipv4 is a packet without options. fragment is the word of flags and offset.
func ipv4(src, dst netip.Addr, proto byte, fragment uint16, payload []byte) []byte {
	h := slices.Concat([]byte{0x45, 0}, be16(uint16(20+len(payload))), be16(7), be16(fragment), []byte{64, proto, 0, 0}, src.AsSlice(), dst.AsSlice())
	var sum uint32
	for i := 0; i < len(h); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(h[i:]))
	}
	sum = sum>>16 + sum&0xffff
	binary.BigEndian.PutUint16(h[10:], ^uint16(sum+sum>>16))
	return append(h, payload...)
}

// udp is a datagram without a checksum.
func udp(port uint16, payload string) []byte {
	return slices.Concat(be16(4000), be16(port), be16(uint16(8+len(payload))), be16(0), []byte(payload))
}

func arpPacket(op uint16, senderMAC net.HardwareAddr, sender netip.Addr, targetMAC net.HardwareAddr, target netip.Addr) []byte {
	return slices.Concat([]byte{0, 1, 8, 0, 6, 4}, be16(op), senderMAC, sender.AsSlice(), targetMAC, target.AsSlice())
}

// icmp6 is an ICMPv6 message of a type, with hop limit 255 as neighbour discovery
// demands.
func icmp6(kind byte, body []byte) []byte {
	src, dst := netip.MustParseAddr("fe80::bad"), netip.MustParseAddr("ff02::1")
	return slices.Concat([]byte{0x60, 0, 0, 0}, be16(uint16(4+len(body))), []byte{unix.IPPROTO_ICMPV6, 255}, src.AsSlice(), dst.AsSlice(), []byte{kind, 0, 0, 0}, body)
}

// A guest that makes its own frames gets nothing through that it may not send,
// and each is counted. It is allowed the whole internet, and nothing else.
func TestHostileGuest(t *testing.T) {
	r := newRig(t, policy.Policy{Allow: []policy.Rule{rule("", nil, "0.0.0.0/0")}})
	g, victim := r.guest("bad", nil), r.guest("victim", nil)
	const port = 4444
	reached := r.listenAll(port, map[string]*os.File{"the host": r.host, "the victim": victim.ns})

	gateway, bridgeMAC := g.Gateway, macOf(g.Gateway)
	loopback, metadata := netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("169.254.169.254")
	otherMAC := net.HardwareAddr{2, 0, 0, 0, 0, 0x66}
	toHost := func(src netip.Addr) []byte { return ipv4(src, gateway, unix.IPPROTO_UDP, 0, udp(port, "x")) }
	fragmented := udp(port, "0123456789abcdef")
	spoofed := func(c Counters) uint64 { return c.Spoofed }
	denied := func(c Counters) uint64 { return c.Denied }
	const ip, arpType, ip6, vlan = unix.ETH_P_IP, unix.ETH_P_ARP, unix.ETH_P_IPV6, unix.ETH_P_8021Q
	for _, tc := range []struct {
		name    string
		counter func(Counters) uint64
		frames  [][]byte
	}{
		{"another hardware address", spoofed, [][]byte{frame(bridgeMAC, otherMAC, ip, toHost(g.Address))}},
		{"the victim's hardware address", spoofed, [][]byte{frame(bridgeMAC, victim.MAC, ip, toHost(g.Address))}},
		{"another source", spoofed, [][]byte{frame(bridgeMAC, g.MAC, ip, toHost(netip.MustParseAddr(friend)))}},
		{"the victim's source", spoofed, [][]byte{frame(bridgeMAC, g.MAC, ip, toHost(victim.Address))}},
		{"the gateway's source", spoofed, [][]byte{frame(bridgeMAC, g.MAC, ip, toHost(gateway))}},
		{"no source", spoofed, [][]byte{frame(bridgeMAC, g.MAC, ip, toHost(netip.IPv4Unspecified()))}},
		{"straight to the victim", spoofed, [][]byte{frame(victim.MAC, g.MAC, ip, ipv4(g.Address, victim.Address, unix.IPPROTO_UDP, 0, udp(port, "x")))}},
		{"to everybody", spoofed, [][]byte{frame(everybody, g.MAC, ip, ipv4(g.Address, netip.MustParseAddr("255.255.255.255"), unix.IPPROTO_UDP, 0, udp(port, "x")))}},
		// A bridge hands frames of its own protocols on before it filters any.
		{"to the bridge's own protocols", spoofed, [][]byte{frame(net.HardwareAddr{1, 0x80, 0xc2, 0, 0, 0xe}, g.MAC, ip, toHost(g.Address))}},
		{"the gateway is here", spoofed, [][]byte{frame(everybody, g.MAC, arpType, arpPacket(2, g.MAC, gateway, everybody, gateway))}},
		{"the victim is here", spoofed, [][]byte{frame(bridgeMAC, g.MAC, arpType, arpPacket(2, g.MAC, victim.Address, bridgeMAC, gateway))}},
		{"I am elsewhere", spoofed, [][]byte{frame(bridgeMAC, g.MAC, arpType, arpPacket(2, otherMAC, g.Address, bridgeMAC, gateway))}},
		{"who is the victim", spoofed, [][]byte{frame(everybody, g.MAC, arpType, arpPacket(1, g.MAC, g.Address, make(net.HardwareAddr, 6), victim.Address))}},
		{"router advertisement", spoofed, [][]byte{frame(net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, g.MAC, ip6, icmp6(134, append([]byte{64, 0, 0xff, 0xff}, make([]byte, 8)...)))}},
		{"neighbour advertisement", spoofed, [][]byte{frame(net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, g.MAC, ip6, icmp6(136, make([]byte, 20)))}},
		{"in a VLAN", spoofed, [][]byte{frame(bridgeMAC, g.MAC, vlan, slices.Concat(be16(5), be16(ip), toHost(g.Address)))}},
		{"the host", denied, [][]byte{frame(bridgeMAC, g.MAC, ip, toHost(g.Address))}},
		{"the host's loopback", denied, [][]byte{frame(bridgeMAC, g.MAC, ip, ipv4(g.Address, loopback, unix.IPPROTO_UDP, 0, udp(port, "x")))}},
		{"the clouds' metadata", denied, [][]byte{frame(bridgeMAC, g.MAC, ip, ipv4(g.Address, metadata, unix.IPPROTO_UDP, 0, udp(port, "x")))}},
		{"the victim by way of the gateway", denied, [][]byte{frame(bridgeMAC, g.MAC, ip, ipv4(g.Address, victim.Address, unix.IPPROTO_UDP, 0, udp(port, "x")))}},
		{"fragments for the host", denied, [][]byte{
			frame(bridgeMAC, g.MAC, ip, ipv4(g.Address, gateway, unix.IPPROTO_UDP, 0x2000, fragmented[:8])),
			frame(bridgeMAC, g.MAC, ip, ipv4(g.Address, gateway, unix.IPPROTO_UDP, 1, fragmented[8:])),
		}},
		{"another protocol", denied, [][]byte{frame(bridgeMAC, g.MAC, ip, ipv4(g.Address, gateway, 132, 0, make([]byte, 16)))}},
	} {
		r.stopped("bad", tc.name, tc.counter, func(ctx context.Context) error {
			for _, f := range tc.frames {
				if _, err := g.wire.Write(f); err != nil {
					return err
				}
			}
			// Whether it was stopped is for the counter to say.
			<-ctx.Done()
			return ctx.Err()
		})
	}
	select {
	case who := <-reached:
		t.Errorf("%s was reached", who)
	default:
	}
	r.in(r.host, func() error { return r.noNeighbour(otherMAC) })
	// What it may send still passes, and the victim has its address.
	r.serve(r.world, 80)
	r.passes(g.ns, "tcp", friend+":80")
	r.passes(victim.ns, "tcp", friend+":80")
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

// listenAll takes UDP datagrams at a port of several namespaces, and tells who
// got one.
func (r *rig) listenAll(port int, all map[string]*os.File) <-chan string {
	reached := make(chan string, 16)
	for name, ns := range all {
		var conn *net.UDPConn
		r.in(ns, func() (err error) { conn, err = net.ListenUDP("udp4", &net.UDPAddr{Port: port}); return err })
		r.t.Cleanup(func() { conn.Close() })
		go func() {
			for {
				_, from, err := conn.ReadFrom(make([]byte, 64))
				if err != nil {
					return
				}
				reached <- name + " by " + from.String()
			}
		}()
	}
	return reached
}

// Ten sandboxes: what is denied to one is not to its neighbours, and what is
// released is forgotten, flows included.
func TestTenSandboxes(t *testing.T) {
	r := newRig(t, policy.Policy{Allow: []policy.Rule{rule("tcp", nil, "0.0.0.0/0")}})
	r.serve(r.world, 80)
	guests := map[string]*guest{}
	for _, id := range []string{"a", "b", "c", "d", "e", "f", "g", "h", "i", "j"} {
		guests[id] = r.guest(id, nil)
		r.passes(guests[id].ns, "tcp", friend+":80")
	}
	r.in(r.host, func() error {
		return r.net.SetPolicy(t.Context(), "a", policy.Policy{Deny: []policy.Rule{rule("", nil, friend)}, Allow: r.net.cfg.Policy.Allow})
	})
	r.denied("a", guests["a"].ns, "tcp", friend+":80")
	for id, g := range guests {
		if id != "a" {
			r.passes(g.ns, "tcp", friend+":80")
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	open, err := r.dial(ctx, guests["b"].ns, "tcp", friend+":80")
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	for id := range guests {
		released := r.del(id)
		if released.StatesAfter != 0 {
			t.Errorf("%s: %d flows are left", id, released.StatesAfter)
		}
		if id == "b" && released.StatesBefore == 0 {
			t.Error("an open flow was not seen")
		}
	}
	if left := r.left(); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

// What is over the bandwidth does not pass.
func TestBandwidth(t *testing.T) {
	const rate = 1 << 20
	r := newRig(t, policy.Policy{Allow: []policy.Rule{rule("tcp", nil, "0.0.0.0/0")}})
	r.serve(r.world, 80)
	slow := r.guest("slow", &policy.Policy{Allow: r.net.cfg.Policy.Allow, Bandwidth: rate})
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	conn, err := r.dial(ctx, slow.ns, "tcp", friend+":80")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Now()) })()
	began := time.Now()
	const size = 3 << 20
	go func() {
		buf := make([]byte, 64<<10)
		for n := 0; n < size; n += len(buf) {
			if _, err := conn.Write(buf); err != nil {
				return
			}
		}
	}()
	got := 0
	for buf := make([]byte, 64<<10); got < size; {
		n, err := conn.Read(buf)
		if got += n; err != nil {
			t.Fatalf("after %d bytes: %v", got, err)
		}
	}
	// A slow machine takes longer; none can be faster than the limit with its
	// burst, which is what a second has room for and a bit.
	if least := time.Duration(size-rate-(512<<10)) * time.Second / rate; time.Since(began) < least {
		t.Errorf("%d bytes took %v, at least %v at %d bytes a second", size, time.Since(began), least, rate)
	}
}
