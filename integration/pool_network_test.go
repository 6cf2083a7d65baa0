//go:build linux || freebsd

package integration

import (
	"testing"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/lab"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/policy"
)

// TestPoolNetwork is containers with a network in machines that were there before
// it.
func TestPoolNetwork(t *testing.T) {
	for _, c := range []struct {
		name string
		run  func(*rig)
	}{
		{"default", testPoolNetwork},
		{"namespace", testPoolNamespace},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(newRig(t, lab.RuntimeBhyve)) })
	}
}

// testPoolNetwork is containers on the default network in machines that were made
// before it: a hot one, and one that was restored for its claim, of the same
// checkpoint.
func testPoolNetwork(r *rig) {
	r.beyond()
	p := r.pool()
	if err := p.AddTemplate(r.ctx, "--nic", "--low", "0", "--high", "1"); err != nil {
		r.Fatal(err)
	}
	if err := p.Warm(r.ctx, 1); err != nil {
		r.Fatal(err)
	}
	flags, n := r.withNetworkAnd(policy.Policy{Allow: []policy.Rule{{Peers: []string{friend}, Protocol: "tcp", Ports: []string{"80"}}}},
		lab.ShimConfig{PoolMode: "require", PoolSocket: p.Socket()})
	config := flags[len(flags)-1]
	hot, one := r.lot(config)
	restored, two := r.lot(config)
	r.wantApart(one, two)
	if len(one.MACs) != 1 {
		r.Errorf("interfaces of a container: %q", one.MACs)
	}
	ids := []string{hot, restored}
	s, err := p.Client.Status(r.ctx, nil)
	if err != nil {
		r.Fatal(err)
	}
	if t := s.Templates[0]; t.ClaimsHot != 1 || t.ClaimsCold != 1 {
		r.Errorf("counted as %v", t)
	}
	for _, id := range ids {
		r.wantOnNetwork(n, id)
	}
	// A shim that is killed leaves nothing of the network either.
	events := r.subscribe()
	if err := r.findProcess("containerd-shim-", ids[0]).Kill(); err != nil {
		r.Fatal(err)
	}
	r.wantDeath(events, ids[0])
	r.removeContainer(ids[1])
	r.eventuallyNobodyOn(n)
	r.wantNoFindings(p)
}

// testPoolNamespace is a hot machine that is lent the interface of a namespace
// which a client has filled.
func testPoolNamespace(r *rig) {
	p := r.pool()
	if err := p.AddTemplate(r.ctx, "--nic", "--no-checkpoint", "--low", "0", "--high", "1"); err != nil {
		r.Fatal(err)
	}
	if err := p.Warm(r.ctx, 1); err != nil {
		r.Fatal(err)
	}
	r.inNamespaceOfTheHost(r.poolFlags("require", p.Socket()))
}

// wantNoFindings has the daemon look for what nobody owns.
func (r *rig) wantNoFindings(p *lab.Pool) {
	r.Helper()
	found, err := p.Client.Check(r.ctx, nil)
	if err != nil || len(found.Lines) > 0 {
		r.Errorf("check: %v, %v", found.GetLines(), err)
	}
}
