//go:build linux || freebsd

package pool

import (
	"errors"
	"fmt"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/proc"
	poolv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/pool/api/v1"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/pool/client"
)

func TestClaimTriesTheTiersInOrder(t *testing.T) {
	r := newRig(t)
	r.open(t.Context())
	c := r.dial()
	tmpl := r.add(c, r.template(cold))
	r.warm(c, tmpl.Name, 1)

	ids := map[string]bool{}
	for _, want := range []poolv1.Tier{poolv1.Tier_TIER_HOT, poolv1.Tier_TIER_COLD} {
		m, err := r.claim(c, tmpl)
		if err != nil {
			t.Fatal(err)
		}
		if m.Tier != want {
			t.Errorf("claimed from %v, want %v", m.Tier, want)
		}
		if ids[m.ID()] {
			t.Errorf("machine %s was handed out twice", m.ID())
		}
		ids[m.ID()] = true
	}

	// Without a checkpoint there is only the boot, if it is asked for.
	r.add(c, r.template())
	if _, err := r.claim(c, tmpl); !errdefs.IsUnavailable(err) {
		t.Errorf("claim from empty tiers: %v, want unavailable", err)
	}
	m, err := r.claimWant(c, client.Want{Shape: tmpl.Shape, Boot: true})
	if err != nil {
		t.Fatal(err)
	}
	if m.Tier != poolv1.Tier_TIER_BOOT {
		t.Errorf("claimed from %v, want a boot", m.Tier)
	}
	s := r.status(c).Templates[0]
	if s.ClaimsHot != 1 || s.ClaimsCold != 1 || s.ClaimsBoot != 1 || s.ClaimsMissed != 1 {
		t.Errorf("counted as %v", s)
	}
}

// A hot machine is stopped for as long as it waits, and runs when it is claimed.
func TestHotMachinesAreStopped(t *testing.T) {
	r := newRig(t)
	r.open(t.Context())
	c := r.dial()
	tmpl := r.add(c, r.template())
	r.warm(c, tmpl.Name, 2)
	for _, id := range r.machines() {
		if stopped, err := id.Stopped(); err != nil || !stopped {
			t.Errorf("machine %s: stopped: %v, %v", id, stopped, err)
		}
	}
	m, err := r.claim(c, tmpl)
	if err != nil {
		t.Fatal(err)
	}
	id, err := proc.Identify(m.Pid())
	if err != nil {
		t.Fatal(err)
	}
	if stopped, err := id.Stopped(); err != nil || stopped {
		t.Errorf("claimed machine: stopped: %v, %v", stopped, err)
	}
}

func TestNoMachineIsClaimedTwice(t *testing.T) {
	const machines, claimants = 10, 50
	r := newRig(t)
	r.open(t.Context())
	c := r.dial()
	tmpl := r.add(c, r.template())
	r.warm(c, tmpl.Name, machines)

	var mu sync.Mutex
	claimed := map[int]bool{}
	empty := 0
	var wg sync.WaitGroup
	start := make(chan struct{})
	for range claimants {
		conn := r.dial()
		wg.Go(func() {
			<-start
			m, err := r.claim(conn, tmpl)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case errdefs.IsUnavailable(err):
				empty++
			case err != nil:
				t.Error(err)
			case claimed[m.Pid()]:
				t.Errorf("machine %d was handed out twice", m.Pid())
			default:
				claimed[m.Pid()] = true
			}
		})
	}
	close(start)
	wg.Wait()
	if len(claimed) != machines || empty != claimants-machines {
		t.Errorf("%d claims got a machine and %d none, want %d and %d", len(claimed), empty, machines, claimants-machines)
	}
	s := r.status(c)
	if got := s.Templates[0]; got.Hot != 0 || got.Offered != 0 || s.Claimed != machines {
		t.Errorf("after all claims: %v", s)
	}
}

// Memory is promised to those that are being made, and the host has as much as
// the four that may be made at once.
func TestClaimsTakeTurnsToRestore(t *testing.T) {
	const claimants = 12
	r := newRig(t)
	r.memory = func() (Memory, error) { return Memory{Total: 1 << 40, Available: 4 * 128 << 20}, nil }
	r.open(t.Context())
	c := r.dial()
	tmpl := r.add(c, r.template(cold))
	// With the first machine the checkpoint is there.
	r.warm(c, tmpl.Name, 1)
	if _, err := r.claim(c, tmpl); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range claimants {
		conn := r.dial()
		wg.Go(func() {
			m, err := r.claim(conn, tmpl)
			if err != nil {
				t.Error(err)
			} else if m.Tier != poolv1.Tier_TIER_COLD {
				t.Errorf("a machine of %s", m.Tier)
			}
		})
	}
	wg.Wait()
}

func TestClaimRefusesWhatDoesNotFit(t *testing.T) {
	r := newRig(t)
	r.open(t.Context())
	c := r.dial()
	tmpl := r.add(c, r.template())
	other := r.template(func(t *poolv1.Template) { t.Shape.MemoryMib = 256 })
	other.Shape.Kernel, other.Shape.Initrd = tmpl.Shape.Kernel, tmpl.Shape.Initrd

	if _, err := r.claim(c, other); !errdefs.IsNotFound(err) {
		t.Errorf("another shape: %v, want not found", err)
	}
	if _, err := r.claimWant(c, client.Want{Shape: other.Shape, Template: tmpl.Name}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("another shape of a template by name: %v, want failed precondition", err)
	}
	if _, err := r.claimWant(c, client.Want{Shape: tmpl.Shape, Template: "none"}); !errdefs.IsNotFound(err) {
		t.Errorf("no such template: %v, want not found", err)
	}
	if s := r.status(c); s.ClaimsUnfit != 3 || s.LastUnfit != tmpl.Shape.Describe() {
		t.Errorf("%d claims that fit nothing, the last for %q", s.ClaimsUnfit, s.LastUnfit)
	}
	if _, err := c.Claim(t.Context(), client.Want{Shape: tmpl.Shape}, noAdopter{r.backend}, nil); !errdefs.IsNotImplemented(err) {
		t.Errorf("a backend that cannot adopt: %v, want not implemented", err)
	}
	if _, err := c.PoolClient.Claim(t.Context(), &poolv1.ClaimRequest{Shape: tmpl.Shape, Claimant: &poolv1.Process{Pid: 1, Start: 1}}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a claimant that does not exist: %v, want failed precondition", err)
	}
}

// claimant is a process that claims and does nothing more.
func claimant(t *testing.T) (*exec.Cmd, *poolv1.Process) {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	id, err := proc.Identify(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	return cmd, &poolv1.Process{Pid: int64(id.Pid), Start: id.Start}
}

func TestMachineOfADeadClaimantIsDestroyed(t *testing.T) {
	r := newRig(t)
	r.open(t.Context())
	c := r.dial()
	tmpl := r.add(c, r.template())
	r.warm(c, tmpl.Name, 1)
	cmd, who := claimant(t)
	offer, err := c.PoolClient.Claim(t.Context(), &poolv1.ClaimRequest{Shape: tmpl.Shape, Claimant: who})
	if err != nil {
		t.Fatal(err)
	}
	cmd.Process.Kill()
	cmd.Wait()
	r.eventually(r.noMachines)
	if _, err := c.Confirm(t.Context(), &poolv1.EntryRequest{Entry: offer.Entry, Claimant: who}); !errdefs.IsNotFound(err) {
		t.Errorf("confirm what was taken back: %v, want not found", err)
	}
}

func (r *rig) noMachines() error {
	if left := r.machines(); len(left) > 0 {
		return fmt.Errorf("machines are left: %v", left)
	}
	return nil
}

func TestOfferEndsAfterAWhile(t *testing.T) {
	r := newRig(t)
	r.claimIn = 50 * time.Millisecond
	r.open(t.Context())
	c := r.dial()
	tmpl := r.add(c, r.template())
	r.warm(c, tmpl.Name, 1)
	_, who := claimant(t)
	offer, err := c.PoolClient.Claim(t.Context(), &poolv1.ClaimRequest{Shape: tmpl.Shape, Claimant: who})
	if err != nil {
		t.Fatal(err)
	}
	r.eventually(r.noMachines)
	if _, err := c.Confirm(t.Context(), &poolv1.EntryRequest{Entry: offer.Entry, Claimant: who}); !errdefs.IsNotFound(err) {
		t.Errorf("a late confirm: %v, want not found", err)
	}
}

func TestOnlyTheClaimantSettlesAnOffer(t *testing.T) {
	r := newRig(t)
	r.open(t.Context())
	c := r.dial()
	tmpl := r.add(c, r.template())
	r.warm(c, tmpl.Name, 1)
	_, who := claimant(t)
	_, other := claimant(t)
	offer, err := c.PoolClient.Claim(t.Context(), &poolv1.ClaimRequest{Shape: tmpl.Shape, Claimant: who})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Confirm(t.Context(), &poolv1.EntryRequest{Entry: offer.Entry, Claimant: other}); !errdefs.IsNotFound(err) {
		t.Errorf("another's confirm: %v, want not found", err)
	}
	if _, err := c.Abandon(t.Context(), &poolv1.EntryRequest{Entry: offer.Entry, Claimant: other}); !errdefs.IsNotFound(err) {
		t.Errorf("another's abandon: %v, want not found", err)
	}
	if _, err := c.Abandon(t.Context(), &poolv1.EntryRequest{Entry: offer.Entry, Claimant: who}); err != nil {
		t.Error(err)
	}
	if err := r.noMachines(); err != nil {
		t.Error(err)
	}
}

// A machine that has died while it was parked is not handed out, and replaced.
func TestDeadMachineIsNotOffered(t *testing.T) {
	r := newRig(t)
	r.open(t.Context())
	c := r.dial()
	tmpl := r.add(c, r.template(func(t *poolv1.Template) { t.Low, t.High = 2, 2 }))
	r.warm(c, tmpl.Name, 2)
	victims := r.machines()
	for _, id := range victims {
		if err := id.Kill(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	r.eventually(func() error {
		m, err := r.claim(c, tmpl)
		if err != nil {
			return err
		}
		for _, id := range victims {
			if m.Pid() == id.Pid {
				return errors.New("a dead machine was handed out")
			}
		}
		return nil
	})
}

// noAdopter hides what a backend can do beyond the least.
type noAdopter struct{ hypervisor.Backend }
