//go:build linux || freebsd

package integration

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/lab"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/pattern"
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

// poolConfig is the configuration of a shim that uses the pool in this mode.
func (r *rig) poolConfig(mode, socket string) (path string) {
	r.Helper()
	path = filepath.Join(r.hostDir(), "shim.toml")
	if err := r.WriteShimConfig(path, lab.ShimConfig{PoolMode: mode, PoolSocket: socket}); err != nil {
		r.Fatal(err)
	}
	return path
}

// withConfig is for a container whose shim has this configuration.
func (r *rig) withConfig(path string) containerd.NewContainerOpts {
	return containerd.WithRuntime(r.runtime, &runtimeoptions.Options{ConfigPath: path})
}

// poolFlags are ctr's for a container whose shim has poolConfig.
func (r *rig) poolFlags(mode, socket string) []string {
	r.Helper()
	return []string{"--runtime-config-path", r.poolConfig(mode, socket)}
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

// lot is a container that says first thing what it has drawn, and goes on until
// the test ends. Its shim has this configuration.
func (r *rig) lot(config string) (id string, lot pattern.Lot) {
	r.Helper()
	name, fifos := "host-of-"+r.newID(), r.hostDir()
	c := r.newContainer([]containerd.NewContainerOpts{r.withConfig(config)},
		oci.WithProcessArgs("/bin/probe", "lot"), oci.WithHostname(name),
		// The machine's id is in its first process's files, not in the container's.
		oci.WithHostNamespace(specs.PIDNamespace), oci.WithAddedCapabilities([]string{"CAP_SYS_PTRACE"}))
	// A client that is told of no end leaves its FIFOs.
	out, creator := r.streams(cio.WithFIFODir(fifos))
	task, err := c.NewTask(r.ctx, creator)
	if err == nil {
		err = task.Start(r.ctx)
	}
	if err != nil {
		r.Fatal(err)
	}
	r.eventually(commandTimeout, func() error { return json.Unmarshal([]byte(out.String()), &lot) })
	if lot.Hostname != name {
		r.Errorf("the host's name is %q, want %q", lot.Hostname, name)
	}
	return c.ID(), lot
}

// wantApart checks that two machines of one checkpoint share nothing that makes a
// machine itself.
func (r *rig) wantApart(one, two pattern.Lot) {
	r.Helper()
	for what, drawn := range map[string][2]string{
		"getrandom":    {one.Random, two.Random},
		"/dev/urandom": {one.Urandom, two.Urandom},
		"uuid":         {one.UUID, two.UUID},
		"boot id":      {one.BootID, two.BootID},
		"machine id":   {one.MachineID, two.MachineID},
	} {
		if drawn[0] == "" || drawn[0] == drawn[1] {
			r.Errorf("%s of two clones: %q and %q", what, drawn[0], drawn[1])
		}
	}
	if len(one.MACs) != len(two.MACs) {
		r.Errorf("interfaces of two clones: %q and %q", one.MACs, two.MACs)
	}
	for _, mac := range one.MACs {
		if mac == "" || slices.Contains(two.MACs, mac) {
			r.Errorf("addresses of two clones: %q and %q", one.MACs, two.MACs)
		}
	}
}

// testPoolClones is that containers in machines of one checkpoint do not draw the
// same lot from their first instructions on, and that a machine which was claimed
// goes with its shim.
func testPoolClones(r *rig) {
	p := r.pool()
	if err := p.AddTemplate(r.ctx, "--low", "0", "--high", "2"); err != nil {
		r.Fatal(err)
	}
	if err := p.Warm(r.ctx, 2); err != nil {
		r.Fatal(err)
	}
	config := r.poolConfig("require", p.Socket())
	events := r.subscribe()
	first, one := r.lot(config)
	_, two := r.lot(config)
	r.wantApart(one, two)
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
