package network

import (
	"context"
	"errors"
	"net/netip"
	"testing"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/policy"
)

// beside is another network of the same host.
func (r *rig) beside(bridge, subnet string) *rig {
	r.t.Helper()
	cfg := r.net.cfg
	cfg.Bridge, cfg.Subnet = bridge, netip.MustParsePrefix(subnet)
	first := number(cfg.Subnet.Addr())
	cfg.Gateway, cfg.First, cfg.Last = fromNumber(first+1), fromNumber(first+10), fromNumber(first+200)
	n, err := Open(cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		err := r.try(func() error {
			_, err := n.GC(context.Background(), func(string) bool { return false })
			return errors.Join(err, n.Destroy(context.Background()))
		})
		if err != nil {
			r.t.Error(err)
		}
	})
	return &rig{t: r.t, host: r.host, world: r.world, net: n}
}

// Two networks of a host share nothing but the host: names, addresses in their
// ranges and taps are each one's own, a guest of the one is a stranger to the
// other's policies, and what is done to the one is not felt in the other.
func TestTwoNetworks(t *testing.T) {
	r := newRig(t, policy.Policy{Allow: []policy.Rule{rule("tcp", nil, "10.78.0.0/24")}})
	other := r.beside("cubenet1", "10.78.0.0/24")
	a := r.guest("a", nil)
	closed := other.guest("a", &policy.Policy{})
	open := other.guest("b", &policy.Policy{Accept: []policy.Rule{rule("tcp", []string{"80"}, a.Address.String())}})
	r.serve(r.world, 53)
	for _, g := range []*guest{closed, open} {
		r.serve(g.place, 80)
	}
	r.passes(a.place, "tcp", open.Address.String()+":80")
	other.denied("a", a.place, "tcp", closed.Address.String()+":80")

	works := func(after string) {
		t.Helper()
		r.in(func() error {
			for _, id := range []string{"a", "b"} {
				if err := other.net.Check(t.Context(), id); err != nil {
					t.Errorf("after %s of the other network: %v", after, err)
				}
			}
			return nil
		})
		r.passes(open.place, "udp", friend+":53")
	}
	r.add("crowd", nil)
	r.del("crowd")
	works("Del")
	// As its machine ends: a tap that is open stays.
	a.wire.Close()
	r.in(func() error {
		_, err := r.net.GC(t.Context(), func(string) bool { return false })
		return err
	})
	works("GC")
	r.in(func() error { return r.net.Destroy(t.Context()) })
	works("Destroy")
	// And it can come back.
	r.add("a", nil)
	works("Add")
}
