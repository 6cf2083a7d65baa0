//go:build linux || freebsd

package integration

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/lab"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/policy"
)

// TestPool is containers in machines that were there before them.
func TestPool(t *testing.T) {
	for _, c := range []struct {
		name string
		run  func(*rig)
	}{
		{"hot", testPoolHot},
		{"clones", testPoolClones},
		{"required and not there", testPoolNotThere},
		{"network", testPoolNetwork},
		{"network namespace", testPoolNamespace},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(newRig(t, lab.RuntimeBhyve)) })
	}
}

// poolFlags are ctr's for a container whose shim uses the pool in this mode.
func (r *rig) poolFlags(mode, socket string) []string {
	r.Helper()
	path := filepath.Join(r.hostDir(), "shim.toml")
	if err := r.WriteShimConfig(path, lab.ShimConfig{PoolMode: mode, PoolSocket: socket}); err != nil {
		r.Fatal(err)
	}
	return []string{"--runtime-config-path", path}
}

func (r *rig) pool() *lab.Pool {
	r.Helper()
	p, err := r.NewPool(r.ctx)
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() {
		if err := p.Close(r.ctx); err != nil {
			r.Error(err)
		}
	})
	return p
}

// testPoolHot is a container in a machine that had booted, was stopped, and
// changed hands twice: to a daemon that was started after the first was killed,
// and to the shim.
func testPoolHot(r *rig) {
	p := r.pool()
	if err := p.AddTemplate(r.ctx, "--no-checkpoint", "--low", "0", "--high", "1"); err != nil {
		r.Fatal(err)
	}
	if err := p.Warm(r.ctx, 1); err != nil {
		r.Fatal(err)
	}
	warm := time.Now()
	p.Kill()
	if err := p.Start(r.ctx); err != nil {
		r.Fatal(err)
	}
	logged, err := r.LogSize()
	if err != nil {
		r.Fatal(err)
	}
	boot := r.parseBoot(r.mustRun(r.poolFlags("require", p.Socket()), "/bin/probe", "boot").Stdout)
	// The guest's clock stood still while the machine was parked: what it has
	// been up for is its boot, most of which was before.
	took := time.Since(warm)
	r.eventually(commandTimeout, func() error {
		log, err := r.LogSince(logged)
		if err != nil {
			return err
		}
		for line := range strings.Lines(log) {
			if strings.Contains(line, "sandbox machine is up") && strings.Contains(line, boot.BootID) {
				if !strings.Contains(line, "path=hot") {
					return fmt.Errorf("the machine was not hot: %s", line)
				}
				r.Logf("%v from pool to end, guest up for %.1f s: %s", took, boot.UptimeSeconds, line)
				return nil
			}
		}
		return fmt.Errorf("no machine with boot id %s in the log", boot.BootID)
	})
	s, err := p.Client.Status(r.ctx, nil)
	if err != nil {
		r.Fatal(err)
	}
	if t := s.Templates[0]; t.ClaimsHot != 1 || t.ClaimsMissed != 0 {
		r.Errorf("counted as %v", t)
	}
	// The record of a machine that was given away goes with the machine.
	r.eventually(commandTimeout, func() error {
		s, err := p.Client.Status(r.ctx, nil)
		if err == nil && s.Claimed != 0 {
			err = fmt.Errorf("%d claimed machines are still there", s.Claimed)
		}
		return err
	})
}

// testPoolClones is that containers in machines of one checkpoint do not draw the
// same lot, and that a machine which was claimed goes with its shim.
func testPoolClones(r *rig) {
	p := r.pool()
	if err := p.AddTemplate(r.ctx, "--low", "0", "--high", "2"); err != nil {
		r.Fatal(err)
	}
	if err := p.Warm(r.ctx, 2); err != nil {
		r.Fatal(err)
	}
	flags := r.poolFlags("require", p.Socket())
	events := r.subscribe()
	first := r.start(flags)
	second := r.start(flags)
	draw := []string{"/bin/sh", "-c", "cat /proc/sys/kernel/random/boot_id /proc/sys/kernel/random/uuid; head -c 16 /dev/urandom | od -An -tx1"}
	one := strings.Split(r.mustOK(r.exec(first, nil, nil, nil, draw...)).Stdout, "\n")
	two := strings.Split(r.mustOK(r.exec(second, nil, nil, nil, draw...)).Stdout, "\n")
	if len(one) != 4 || len(two) != 4 {
		r.Fatalf("drawn: %q and %q", one, two)
	}
	for i, what := range []string{"boot id", "uuid", "random bytes"} {
		if one[i] == "" || one[i] == two[i] {
			r.Errorf("%s of two clones: %q and %q", what, one[i], two[i])
		}
	}
	s, err := p.Client.Status(r.ctx, nil)
	if err != nil {
		r.Fatal(err)
	}
	if t := s.Templates[0]; t.MadeCold != 2 || t.ClaimsHot != 2 || s.Claimed != 2 {
		r.Errorf("counted as %v", s)
	}

	if err := r.findProcess("containerd-shim-", first).Kill(); err != nil {
		r.Fatal(err)
	}
	r.wantDeath(events, first)
	r.eventually(commandTimeout, func() error {
		s, err := p.Client.Status(r.ctx, nil)
		if err == nil && s.Claimed != 1 {
			err = fmt.Errorf("%d claimed machines are there, want that of the shim which lives", s.Claimed)
		}
		return err
	})
}

func testPoolNotThere(r *rig) {
	socket := filepath.Join(r.hostDir(), "none")
	result := r.run(r.poolFlags("require", socket), "/bin/true")
	if result.Code == 0 || !strings.Contains(result.Stderr, "pool") {
		r.Errorf("without the pool that is required: %s", result)
	}
	r.mustRun(r.poolFlags("auto", socket), "/bin/true")
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
	ids := []string{r.start(flags), r.start(flags)}
	s, err := p.Client.Status(r.ctx, nil)
	if err != nil {
		r.Fatal(err)
	}
	if t := s.Templates[0]; t.ClaimsHot != 1 || t.ClaimsCold != 1 {
		r.Errorf("counted as %v", t)
	}
	infos, err := n.List(r.ctx)
	if err != nil || len(infos) != 2 {
		r.Fatalf("%d sandboxes have a network: %v", len(infos), err)
	}
	for i, id := range ids {
		info := infos[i]
		if !strings.HasPrefix(info.ID, id+".") {
			info = infos[1-i]
		}
		if err := n.Check(r.ctx, info.ID); err != nil {
			r.Error(err)
		}
		out := r.mustOK(r.exec(id, nil, nil, nil, "/bin/sh", "-c", "cat /sys/class/net/eth0/address; ip -4 -o addr show eth0")).Stdout
		if !strings.HasPrefix(out, info.MAC.String()+"\n") || !strings.Contains(out, info.Address.String()+"/32") {
			r.Errorf("%s and %s are in the guest %q", info.MAC, info.Address, out)
		}
		r.expect(r.exec(id, nil, nil, nil, "/bin/probe", "fetch", "http://"+friend+"/"), 0, labUplink+"\n")
		if result := r.exec(id, nil, nil, nil, "/bin/probe", "fetch", "http://"+foe+"/"); result.Code == 0 {
			r.Errorf("reached %s: %s", foe, result.Stdout)
		}
	}
	// A shim that is killed leaves nothing of the network either.
	events := r.subscribe()
	if err := r.findProcess("containerd-shim-", ids[0]).Kill(); err != nil {
		r.Fatal(err)
	}
	r.wantDeath(events, ids[0])
	r.removeContainer(ids[1])
	r.eventually(commandTimeout, func() error {
		infos, err := n.List(r.ctx)
		if err == nil && len(infos) > 0 {
			err = fmt.Errorf("%d sandboxes still have a network", len(infos))
		}
		return err
	})
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
