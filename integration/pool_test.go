//go:build linux

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

func testPoolNotThere(r *rig) {
	socket := filepath.Join(r.hostDir(), "none")
	result := r.run(r.poolFlags("require", socket), "/bin/true")
	if result.Code == 0 || !strings.Contains(result.Stderr, "pool") {
		r.Errorf("without the pool that is required: %s", result)
	}
	r.mustRun(r.poolFlags("auto", socket), "/bin/true")
}
