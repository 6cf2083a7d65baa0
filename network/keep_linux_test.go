package network

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/policy"
)

// flushRuleset is `nft flush ruleset`.
func (r *rig) flushRuleset() {
	r.t.Helper()
	r.in(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		c.FlushRuleset()
		return c.Flush()
	})
}

// fenced is how many frames the fence has dropped.
func (r *rig) fenced() (n uint64) {
	r.t.Helper()
	r.in(func() error {
		bridge, err := netlink.LinkByName(r.net.cfg.Bridge)
		if err != nil {
			return err
		}
		qdiscs, err := netlink.QdiscList(bridge)
		for _, q := range qdiscs {
			if q.Type() == "ingress" && q.Attrs().Statistics != nil {
				n = uint64(q.Attrs().Statistics.Queue.Drops)
			}
		}
		return err
	})
	return n
}

// eventually waits for something, with patience.
func (r *rig) eventually(what string, is func() bool) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !is() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			r.t.Fatalf("waited in vain for %s", what)
		}
	}
}

// A firewall that is reloaded takes the rules with it: nothing comes from a guest
// until they are back, and what keeps them brings them back.
func TestFlushedRuleset(t *testing.T) {
	r := newRig(t, policy.Policy{Allow: []policy.Rule{rule("", nil, "0.0.0.0/0")}})
	r.serve(r.world, 80)
	g := r.guest("g", nil)
	const port = 4444
	reached := r.listenAll(port, map[string]*place{"the host": r.host, "the world": r.world})
	r.passes(g.place, "tcp", friend+":80")

	r.flushRuleset()
	before := r.fenced()
	toHost := ipv4(g.Address, g.Gateway, unix.IPPROTO_UDP, 0, udp(4000, port, "x"))
	toWorld := ipv4(g.Address, netip.MustParseAddr(friend), unix.IPPROTO_UDP, 0, udp(4000, port, "x"))
	for _, p := range [][]byte{toHost, toWorld} {
		if _, err := g.wire.Write(frame(macOf(g.Gateway), g.MAC, unix.ETH_P_IP, p)); err != nil {
			t.Fatal(err)
		}
	}
	r.eventually("the fence to drop both", func() bool { return r.fenced() >= before+2 })
	select {
	case who := <-reached:
		t.Errorf("%s was reached without rules", who)
	default:
	}
	r.in(func() error {
		if err := r.net.Check(t.Context(), "g"); err == nil || !strings.Contains(err.Error(), "chain") {
			t.Errorf("check without rules: %v", err)
		}
		return nil
	})

	ctx, stop := context.WithCancel(t.Context())
	kept := make(chan error, 1)
	go func() { kept <- r.try(func() error { return r.net.Keep(ctx) }) }()
	check := func() (err error) {
		r.in(func() error { err = r.net.Check(t.Context(), "g"); return nil })
		return err
	}
	r.eventually("the rules to be back", func() bool { return check() == nil })
	r.passes(g.place, "tcp", friend+":80")
	// And the next time, by itself.
	r.flushRuleset()
	r.eventually("the rules to be back again", func() bool { return check() == nil })
	r.passes(g.place, "tcp", friend+":80")
	stop()
	if err := <-kept; err != nil {
		t.Error(err)
	}
}

// What is stopped is logged, with the sandbox that it came from.
func TestStoppedIsLogged(t *testing.T) {
	r := newRig(t, policy.Policy{Allow: []policy.Rule{rule("", nil, "0.0.0.0/0")}})
	cfg := r.net.cfg
	cfg.LogGroup = 77
	var err error
	if r.net, err = Open(cfg); err != nil {
		t.Fatal(err)
	}
	g := r.guest("g", nil)
	got := make(chan Stopped, 16)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- r.try(func() error { return r.net.Stopped(ctx, func(s Stopped) { got <- s }) })
	}()
	other := netip.MustParseAddr(friend)
	denied := frame(macOf(g.Gateway), g.MAC, unix.ETH_P_IP, ipv4(g.Address, g.Gateway, unix.IPPROTO_UDP, 0, udp(4000, 99, "x")))
	spoofed := frame(macOf(g.Gateway), g.MAC, unix.ETH_P_IP, ipv4(other, g.Gateway, unix.IPPROTO_UDP, 0, udp(4000, 99, "x")))
	for _, tc := range []struct {
		why    string
		frame  []byte
		source netip.Addr
	}{{"denied", denied, g.Address}, {"spoofed", spoofed, other}} {
		s := r.logged(got, g, tc.frame, tc.why)
		if s.ID != "g" || s.EtherType != unix.ETH_P_IP || s.Protocol != unix.IPPROTO_UDP ||
			s.Source.Addr() != tc.source || s.Destination != netip.AddrPortFrom(g.Gateway, 99) {
			t.Errorf("%s: %+v", tc.why, s)
		}
		if tc.why == "spoofed" && s.MAC.String() != g.MAC.String() {
			t.Errorf("spoofed by %s, want %s", s.MAC, g.MAC)
		}
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// logged sends a frame until it is logged: whoever reads the log may not have
// begun.
func (r *rig) logged(got <-chan Stopped, g *guest, frame []byte, why string) Stopped {
	r.t.Helper()
	// Fewer than are logged a minute.
	for range 8 {
		if _, err := g.wire.Write(frame); err != nil {
			r.t.Fatal(err)
		}
		timer := time.NewTimer(patience / 8)
		for {
			select {
			case s := <-got:
				if s.Why == why {
					return s
				}
				continue
			case <-timer.C:
			}
			break
		}
	}
	r.t.Fatalf("nothing was logged as %s", why)
	return Stopped{}
}
