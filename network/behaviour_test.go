package network

import (
	"context"
	"net/netip"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/policy"
)

func rule(proto string, ports []string, peers ...string) policy.Rule {
	return policy.Rule{Peers: peers, Protocol: proto, Ports: ports}
}

func TestDefaultDeniesAllButDNS(t *testing.T) {
	r := newRig(t, policy.Policy{})
	g := r.guest("a", nil)
	r.serve(r.world, 53)
	r.serve(r.world, 80)
	r.serve(r.host, 80)
	r.passes(g.place, "udp", friend+":53")
	r.passes(g.place, "tcp", friend+":53")
	for _, addr := range []string{friend + ":80", foe + ":53", private + ":80", uplink + ":80", g.Gateway.String() + ":80"} {
		r.denied("a", g.place, "tcp", addr)
		r.denied("a", g.place, "udp", addr)
	}
}

func TestOrderOfRules(t *testing.T) {
	r := newRig(t, policy.Policy{})
	for _, port := range []uint16{53, 80, 443} {
		r.serve(r.world, port)
		r.serve(r.host, port)
	}
	g := r.guest("a", &policy.Policy{
		Deny: []policy.Rule{
			rule("", nil, foe),
			rule("tcp", []string{"443"}, friend),
			rule("tcp", []string{"443"}, policy.HostPeer),
		},
		Allow: []policy.Rule{rule("", nil, "0.0.0.0/0", policy.HostPeer)},
	})
	for _, network := range []string{"tcp", "udp"} {
		r.passes(g.place, network, friend+":80")
		r.passes(g.place, network, g.Gateway.String()+":80")
		r.denied("a", g.place, network, foe+":80")
		// 0.0.0.0/0 is the internet, and no private network.
		r.denied("a", g.place, network, private+":80")
	}
	r.passes(g.place, "tcp", uplink+":80")
	r.denied("a", g.place, "tcp", friend+":443")
	r.denied("a", g.place, "tcp", uplink+":443")
	r.passes(g.place, "udp", friend+":443")

	named := r.guest("b", &policy.Policy{Allow: []policy.Rule{rule("tcp", []string{"80-100"}, "192.168.50.0/24")}})
	r.passes(named.place, "tcp", private+":80")
	r.denied("b", named.place, "tcp", private+":443")
	r.denied("b", named.place, "udp", private+":80")
	r.denied("b", named.place, "tcp", friend+":80")
	// The host has an address in that network. It is the host all the same.
	r.denied("b", named.place, "tcp", "192.168.50.1:80")

	dns := r.guest("c", &policy.Policy{Deny: []policy.Rule{rule("", nil, "0.0.0.0/0")}})
	r.denied("c", dns.place, "udp", friend+":53")
}

func TestGuestsReachEachOtherWhereBothAgree(t *testing.T) {
	r := newRig(t, policy.Policy{})
	any10 := []policy.Rule{rule("tcp", nil, "10.77.0.0/24")}
	a := r.guest("a", &policy.Policy{Allow: any10})
	b := r.guest("b", &policy.Policy{Allow: any10, Accept: []policy.Rule{rule("tcp", []string{"80"}, "10.77.0.0/24")}})
	c := r.guest("c", nil)
	for _, g := range []*guest{a, b} {
		r.serve(g.place, 80)
		r.serve(g.place, 81)
	}
	r.passes(a.place, "tcp", b.Address.String()+":80")
	r.denied("b", a.place, "tcp", b.Address.String()+":81")
	r.denied("a", b.place, "tcp", a.Address.String()+":80")
	r.denied("c", c.place, "tcp", b.Address.String()+":80")
}

func TestPublishedPorts(t *testing.T) {
	r := newRig(t, policy.Policy{})
	ctx, cancel := context.WithCancel(t.Context())
	forwarded := make(chan error, 1)
	go func() { forwarded <- r.try(func() error { return r.net.Forward(ctx) }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-forwarded; err != nil && !errdefs.IsNotImplemented(err) {
			t.Error(err)
		}
	})
	ports := []policy.Port{
		{Host: 8080, Guest: 80}, {Host: 8054, Guest: 53, Protocol: "udp", HostIP: netip.MustParseAddr(uplink)},
		{Host: 8053, Guest: 53, Protocol: "udp", HostIP: netip.MustParseAddr("127.0.0.1")},
	}
	g := r.guest("a", &policy.Policy{Publish: ports})
	r.serve(g.place, 80)
	r.serve(g.place, 53)
	r.serve(g.place, 81)
	r.passes(r.world, "tcp", uplink+":8080")
	r.passes(r.world, "udp", uplink+":8054")
	for _, to := range []struct{ network, addr string }{
		{"tcp", "127.0.0.1:8080"}, {"tcp", uplink + ":8080"}, {"tcp", g.Gateway.String() + ":8080"},
		{"udp", "127.0.0.1:8053"}, {"udp", uplink + ":8054"},
	} {
		r.comesToPass(r.host, to.network, to.addr)
	}
	// Not published, though the world knows the way.
	r.denied("a", r.world, "tcp", g.Address.String()+":81")
	// Another guest has no way around its own policy by the host's address.
	b := r.guest("b", nil)
	r.denied("b", b.place, "tcp", uplink+":8080")

	var err error
	r.in(func() error {
		_, err = r.net.Add(t.Context(), Request{ID: "c", Policy: &policy.Policy{Publish: []policy.Port{{Host: 8080, Guest: 1}}}})
		return nil
	})
	if err == nil {
		t.Error("a port was published twice")
	}
	if _, err := r.net.Show(t.Context(), "c"); err == nil {
		t.Error("a refused sandbox is there")
	}
	// Another port is published while it runs.
	r.in(func() error {
		return r.net.SetPolicy(t.Context(), "a", policy.Policy{Publish: []policy.Port{{Host: 8081, Guest: 80}}})
	})
	r.passes(r.world, "tcp", uplink+":8081")
	r.comesToPass(r.host, "tcp", "127.0.0.1:8081")
}

// A policy that is changed holds for open flows, and does not disturb those that
// it allows; a neighbour does not notice.
func TestPolicyIsChangedLive(t *testing.T) {
	r := newRig(t, policy.Policy{Allow: []policy.Rule{rule("tcp", nil, "0.0.0.0/0")}})
	r.serve(r.world, 80)
	a, b := r.guest("a", nil), r.guest("b", nil)
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	open := func(g *guest, addr string) func() error {
		conn, err := r.open(ctx, g.place, "tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return func() error { return echo(ctx, conn) }
	}
	kept, cut, neighbour := open(a, friend+":80"), open(a, foe+":80"), open(b, foe+":80")
	r.in(func() error {
		return r.net.SetPolicy(ctx, "a", policy.Policy{
			Deny:  []policy.Rule{rule("", nil, foe)},
			Allow: []policy.Rule{rule("tcp", nil, "0.0.0.0/0")},
		})
	})
	if err := kept(); err != nil {
		t.Errorf("a flow that is allowed was disturbed: %v", err)
	}
	if err := neighbour(); err != nil {
		t.Errorf("the neighbour's flow was disturbed: %v", err)
	}
	r.stopped("a", "open flow to what is now denied", denied, func(context.Context) error { return cut() })
	if n := r.counters("b").Denied; n != 0 {
		t.Errorf("%d packets of the neighbour's were denied", n)
	}
}
