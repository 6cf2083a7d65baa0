//go:build linux || freebsd

package integration

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/lab"
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
