package network

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/policy"
)

// Types of frames (IEEE 802).
const ip, arpType, ip6, vlan = 0x0800, 0x0806, 0x86dd, 0x8100

var everybody = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

func be16(n uint16) []byte { return binary.BigEndian.AppendUint16(nil, n) }

func frame(dst, src []byte, etherType uint16, payload []byte) []byte {
	return slices.Concat(frameHeader, dst, src, be16(etherType), payload)
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
func udp(from, to uint16, payload string) []byte {
	return slices.Concat(be16(from), be16(to), be16(uint16(8+len(payload))), be16(0), []byte(payload))
}

func arpPacket(op uint16, senderMAC []byte, sender netip.Addr, targetMAC []byte, target netip.Addr) []byte {
	return slices.Concat([]byte{0, 1, 8, 0, 6, 4}, be16(op), senderMAC, sender.AsSlice(), targetMAC, target.AsSlice())
}

// icmp6 is an ICMPv6 message of a type, with hop limit 255 as neighbour discovery
// demands.
func icmp6(kind byte, body []byte) []byte {
	src, dst := netip.MustParseAddr("fe80::bad"), netip.MustParseAddr("ff02::1")
	return slices.Concat([]byte{0x60, 0, 0, 0}, be16(uint16(4+len(body))), []byte{unix.IPPROTO_ICMPV6, 255}, src.AsSlice(), dst.AsSlice(), []byte{kind, 0, 0, 0}, body)
}

// crime is what is wrong with a frame. How each is told of is the system's:
// counterOf. What no counter tells of is not believed, or goes nowhere.
type crime int

const (
	// forged bears another's IP address, or is no IPv4.
	forged crime = iota
	// disguised has another's hardware address, or is for no single one.
	disguised
	// direct is for another guest, past the gateway.
	direct
	// lie is an untrue ARP packet.
	lie
	// tagged is in a VLAN.
	tagged
	// martian is for the loopback.
	martian
	// forbidden is well made, and not allowed.
	forbidden
)

func spoofed(c Counters) uint64 { return c.Spoofed }
func denied(c Counters) uint64  { return c.Denied }

// A guest that makes its own frames gets nothing through that it may not send,
// and each is counted. It is allowed the whole internet, and nothing else.
func TestHostileGuest(t *testing.T) {
	r := newRig(t, policy.Policy{Allow: []policy.Rule{rule("", nil, "0.0.0.0/0")}})
	g, victim := r.guest("bad", nil), r.guest("victim", nil)
	const port = 4444
	reached := r.listenAll(port, map[string]*place{"the host": r.host, "the victim": victim.place})

	gateway, bridgeMAC := g.Gateway, macOf(g.Gateway)
	loopback, metadata := netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("169.254.169.254")
	otherMAC := net.HardwareAddr{2, 0, 0, 0, 0, 0x66}
	toHost := func(src netip.Addr) []byte { return ipv4(src, gateway, unix.IPPROTO_UDP, 0, udp(4000, port, "x")) }
	fragmented := udp(4000, port, "0123456789abcdef")
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	portOf := func(p *place) uint16 {
		conn, err := r.open(ctx, p, "udp", friend+":80")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return uint16(conn.LocalAddr().(*net.UDPAddr).Port)
	}
	// Flows that exist, for others to join.
	r.serve(r.world, 80)
	victims, hosts := portOf(victim.place), portOf(r.host)
	server := netip.MustParseAddr(friend)
	for _, tc := range []struct {
		name   string
		crime  crime
		frames [][]byte
	}{
		{"another hardware address", disguised, [][]byte{frame(bridgeMAC, otherMAC, ip, toHost(g.Address))}},
		{"the victim's hardware address", disguised, [][]byte{frame(bridgeMAC, victim.MAC, ip, toHost(g.Address))}},
		{"another source", forged, [][]byte{frame(bridgeMAC, g.MAC, ip, toHost(netip.MustParseAddr(friend)))}},
		{"the victim's source", forged, [][]byte{frame(bridgeMAC, g.MAC, ip, toHost(victim.Address))}},
		{"the gateway's source", forged, [][]byte{frame(bridgeMAC, g.MAC, ip, toHost(gateway))}},
		{"no source", forged, [][]byte{frame(bridgeMAC, g.MAC, ip, toHost(netip.IPv4Unspecified()))}},
		{"in the victim's flow", forged, [][]byte{frame(bridgeMAC, g.MAC, ip, ipv4(victim.Address, server, unix.IPPROTO_UDP, 0, udp(victims, 80, "x")))}},
		{"an answer to the victim", forged, [][]byte{frame(bridgeMAC, g.MAC, ip, ipv4(server, victim.Address, unix.IPPROTO_UDP, 0, udp(80, victims, "x")))}},
		{"an answer to the host", forged, [][]byte{frame(bridgeMAC, g.MAC, ip, ipv4(server, netip.MustParseAddr(uplink), unix.IPPROTO_UDP, 0, udp(80, hosts, "x")))}},
		{"straight to the victim", direct, [][]byte{frame(victim.MAC, g.MAC, ip, ipv4(g.Address, victim.Address, unix.IPPROTO_UDP, 0, udp(4000, port, "x")))}},
		{"to everybody", disguised, [][]byte{frame(everybody, g.MAC, ip, ipv4(g.Address, netip.MustParseAddr("255.255.255.255"), unix.IPPROTO_UDP, 0, udp(4000, port, "x")))}},
		// A bridge hands frames of its own protocols on before it filters any.
		{"to the bridge's own protocols", disguised, [][]byte{frame(net.HardwareAddr{1, 0x80, 0xc2, 0, 0, 0xe}, g.MAC, ip, toHost(g.Address))}},
		{"the gateway is here", lie, [][]byte{frame(everybody, g.MAC, arpType, arpPacket(2, g.MAC, gateway, everybody, gateway))}},
		{"the victim is here", lie, [][]byte{frame(bridgeMAC, g.MAC, arpType, arpPacket(2, g.MAC, victim.Address, bridgeMAC, gateway))}},
		{"I am elsewhere", lie, [][]byte{frame(bridgeMAC, g.MAC, arpType, arpPacket(2, otherMAC, g.Address, bridgeMAC, gateway))}},
		{"who is the victim", lie, [][]byte{frame(everybody, g.MAC, arpType, arpPacket(1, g.MAC, g.Address, make(net.HardwareAddr, 6), victim.Address))}},
		{"router advertisement", forged, [][]byte{frame(net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, g.MAC, ip6, icmp6(134, append([]byte{64, 0, 0xff, 0xff}, make([]byte, 8)...)))}},
		{"neighbour advertisement", forged, [][]byte{frame(net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, g.MAC, ip6, icmp6(136, make([]byte, 20)))}},
		{"in a VLAN", tagged, [][]byte{frame(bridgeMAC, g.MAC, vlan, slices.Concat(be16(5), be16(ip), toHost(g.Address)))}},
		{"the host", forbidden, [][]byte{frame(bridgeMAC, g.MAC, ip, toHost(g.Address))}},
		{"the host's loopback", martian, [][]byte{frame(bridgeMAC, g.MAC, ip, ipv4(g.Address, loopback, unix.IPPROTO_UDP, 0, udp(4000, port, "x")))}},
		{"the clouds' metadata", forbidden, [][]byte{frame(bridgeMAC, g.MAC, ip, ipv4(g.Address, metadata, unix.IPPROTO_UDP, 0, udp(4000, port, "x")))}},
		{"the victim by way of the gateway", forbidden, [][]byte{frame(bridgeMAC, g.MAC, ip, ipv4(g.Address, victim.Address, unix.IPPROTO_UDP, 0, udp(4000, port, "x")))}},
		{"fragments for the host", forbidden, [][]byte{
			frame(bridgeMAC, g.MAC, ip, ipv4(g.Address, gateway, unix.IPPROTO_UDP, 0x2000, fragmented[:8])),
			frame(bridgeMAC, g.MAC, ip, ipv4(g.Address, gateway, unix.IPPROTO_UDP, 1, fragmented[8:])),
		}},
		{"another protocol", forbidden, [][]byte{frame(bridgeMAC, g.MAC, ip, ipv4(g.Address, gateway, unix.IPPROTO_GRE, 0, make([]byte, 16)))}},
	} {
		counter, frames := counterOf[tc.crime], tc.frames
		if counter == nil {
			// Frames are looked at one after the other: when this one has been counted,
			// they have been as well.
			counter, frames = spoofed, append(frames, frame(bridgeMAC, g.MAC, ip, toHost(server)))
		}
		r.stopped("bad", tc.name, counter, func(ctx context.Context) error {
			for _, f := range frames {
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
	r.in(func() error { return r.noNeighbour(otherMAC) })
	// What it may send still passes, and the victim has its address.
	r.serve(victim.place, 80)
	r.passes(g.place, "tcp", friend+":80")
	r.passes(victim.place, "tcp", friend+":80")
	r.passes(r.host, "tcp", victim.Address.String()+":80")
}

// listenAll takes UDP datagrams at a port of several places, and tells who
// got one.
func (r *rig) listenAll(port uint16, all map[string]*place) <-chan string {
	reached := make(chan string, 16)
	for name, p := range all {
		conn, err := p.listenPacket(port)
		if err != nil {
			r.t.Fatal(err)
		}
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
		r.passes(guests[id].place, "tcp", friend+":80")
	}
	r.in(func() error {
		return r.net.SetPolicy(t.Context(), "a", policy.Policy{Deny: []policy.Rule{rule("", nil, friend)}, Allow: r.net.cfg.Policy.Allow})
	})
	r.denied("a", guests["a"].place, "tcp", friend+":80")
	for id, g := range guests {
		if id != "a" {
			r.passes(g.place, "tcp", friend+":80")
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	open, err := r.open(ctx, guests["b"].place, "tcp", friend+":80")
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	for id, g := range guests {
		// A tap of FreeBSD goes when nobody has it open any more.
		g.wire.Close()
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

// What is over the bandwidth does not pass, in either direction, also of a flow that
// was open before there was one; and without it the flow goes on.
func TestBandwidth(t *testing.T) {
	r := newRig(t, policy.Policy{Allow: []policy.Rule{rule("tcp", nil, "0.0.0.0/0")}})
	if why := whyNoBandwidth(); why != "" {
		t.Skip(why)
	}
	// A slow machine takes longer; none can be faster than the limit with its
	// burst, which is what a second has room for and a bit.
	const rate, size, least = limitedTo, 3 * limitedTo, 1500 * time.Millisecond
	// One server hears all, and then answers; another speaks when it is asked.
	r.listen(r.world, 80, func(c net.Conn) {
		if _, err := io.CopyN(io.Discard, c, size); err == nil {
			c.Write(make([]byte, 1))
		}
	})
	r.listen(r.world, 81, func(c net.Conn) {
		if _, err := io.CopyN(io.Discard, c, 1); err == nil {
			c.Write(make([]byte, size))
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 4*patience)
	defer cancel()
	dial := func(g *guest, port string) net.Conn {
		t.Helper()
		conn, err := g.dial(ctx, "tcp", friend+":"+port)
		if err != nil {
			t.Fatal(err)
		}
		stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Now()) })
		t.Cleanup(func() { stop(); conn.Close() })
		return conn
	}
	// takes sends and receives so much.
	takes := func(conn net.Conn, sends, receives int64) time.Duration {
		t.Helper()
		began := time.Now()
		go conn.Write(make([]byte, sends))
		if n, err := io.CopyN(io.Discard, conn, receives); err != nil {
			t.Fatalf("after %d bytes: %v", n, err)
		}
		took := time.Since(began)
		t.Logf("%d bytes out and %d in took %v", sends, receives, took)
		return took
	}
	limited := policy.Policy{Allow: r.net.cfg.Policy.Allow, Bandwidth: rate}
	slow, changed := r.guest("slow", &limited), r.guest("changed", nil)
	if took := takes(dial(slow, "80"), size, 1); took < least {
		t.Errorf("to send %d bytes took %v, at least %v at %d bytes a second", size, took, least, rate)
	}
	if took := takes(dial(slow, "81"), 1, size); took < least {
		t.Errorf("to receive %d bytes took %v, at least %v at %d bytes a second", size, took, least, rate)
	}
	before, after := dial(changed, "80"), dial(changed, "80")
	set := func(p policy.Policy) {
		t.Helper()
		r.in(func() error { return r.net.SetPolicy(ctx, "changed", p) })
	}
	set(limited)
	if took := takes(before, size, 1); took < least {
		t.Errorf("to send %d bytes by an open flow took %v, at least %v at %d bytes a second", size, took, least, rate)
	}
	set(r.net.cfg.Policy)
	takes(after, size, 1)
}
