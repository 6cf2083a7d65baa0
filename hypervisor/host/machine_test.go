//go:build linux || freebsd

package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/proc"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/thaw"
)

// These are what a machine has to do whatever it is made of: the same tests run
// on every system.

// silence is how long a parked machine is listened to.
const silence = 300 * time.Millisecond

// standing is how long a machine stands still whose clock is read: ACPI's timer of
// 24 bits goes round in less.
const standing = 6 * time.Second

// TestBoots has each kernel come up in machines that are as small as they get, of
// more processors than one, and with memory on both sides of the gap below 4 GiB.
func TestBoots(t *testing.T) {
	testConfig(t)
	for _, kernel := range kernels(t, os.Getenv(guestDirEnv)) {
		for _, size := range []struct{ vcpus, mib int }{{1, 128}, {2, 1 << 10}, {1, 5 << 10}, {2, 5 << 10}} {
			t.Run(fmt.Sprintf("%s with %d MiB and %d vCPUs", filepath.Base(kernel), size.mib, size.vcpus), func(t *testing.T) {
				r := boot(t, func(c *hypervisor.Config) { c.Kernel, c.VCPUs, c.MemoryMiB = kernel, size.vcpus, size.mib })
				t.Logf("the guest's kernel had run for %v when it answered", r.greet(testContext(t)).Uptime.AsDuration())
				if err := r.PowerOff(testContext(t)); err != nil {
					t.Fatal(err)
				}
				if exit := r.waitDone(); exit.Reason != hypervisor.ExitPowerOff {
					t.Errorf("exit %+v", exit)
				}
			})
		}
	}
}

// TestParkAndUnpark proves each time that nothing of the machine runs, and that
// all of it runs again.
func TestParkAndUnpark(t *testing.T) {
	r := boot(t)
	parker, ok := r.Machine.(hypervisor.Parker)
	if !ok {
		t.Skip("this system's machines cannot be parked")
	}
	id, err := proc.Identify(r.Pid())
	if err != nil {
		t.Fatal(err)
	}
	before := r.greet(testContext(t))
	for i := range 10 {
		began := time.Now()
		if err := parker.Park(testContext(t)); err != nil {
			t.Fatal(err)
		}
		parked := time.Since(began)
		if stopped, err := id.Stopped(); err != nil || !stopped {
			t.Fatalf("round %d: parked, and in the process table: %v, %v", i, stopped, err)
		}
		listening, cancel := context.WithTimeout(t.Context(), silence)
		if _, err := r.hello(listening); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("round %d: answered while parked: %v", i, err)
		}
		cancel()
		began = time.Now()
		if err := parker.Unpark(testContext(t)); err != nil {
			t.Fatal(err)
		}
		if stopped, err := id.Stopped(); err != nil || stopped {
			t.Errorf("round %d: unparked, and stopped in the process table: %v, %v", i, stopped, err)
		}
		after := r.greet(testContext(t))
		t.Logf("parked in %v, answered %v after that was ended", parked.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
		if after.BootId != before.BootId {
			t.Errorf("round %d: another boot", i)
		}
		if after.Uptime.AsDuration() < before.Uptime.AsDuration() {
			t.Errorf("round %d: uptime went back from %v to %v", i, before.Uptime.AsDuration(), after.Uptime.AsDuration())
		}
		before = after
	}
}

// TestClockAfterParking has a machine stand still for longer than its timers
// count, and reads its clock before and after it is set.
func TestClockAfterParking(t *testing.T) {
	r := boot(t, func(c *hypervisor.Config) { c.VCPUs = 1 })
	parker, ok := r.Machine.(hypervisor.Parker)
	if !ok {
		t.Skip("this system's machines cannot be parked")
	}
	if _, err := thaw.Do(testContext(t), r.thaw, thaw.Identity{}); err != nil {
		t.Fatal(err)
	}
	if err := parker.Park(testContext(t)); err != nil {
		t.Fatal(err)
	}
	<-time.After(standing)
	if err := parker.Unpark(testContext(t)); err != nil {
		t.Fatal(err)
	}
	before, err := thaw.ReadClock(testContext(t), r.thaw)
	if err != nil {
		t.Fatal(err)
	}
	set, err := thaw.SetClock(testContext(t), r.thaw)
	if err != nil {
		t.Fatal(err)
	}
	after, err := thaw.ReadClock(testContext(t), r.thaw)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the clock, ahead of the host's: right after unparking %v ± %v; set, by %d steps, %v ± %v; read again %v ± %v",
		before.Error, before.Bound, set.Corrections, set.Error, set.Bound, after.Error, after.Bound)
	if after.IsWrong() {
		t.Errorf("the clock is %v ahead, give or take %v, after it was set", after.Error, after.Bound)
	}
}

// TestDestroyWhatIsParked leaves nothing, as the rig sees.
func TestDestroyWhatIsParked(t *testing.T) {
	r := boot(t, func(c *hypervisor.Config) { c.VCPUs = 1 })
	parker, ok := r.Machine.(hypervisor.Parker)
	if !ok {
		t.Skip("this system's machines cannot be parked")
	}
	if err := parker.Park(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if err := r.Destroy(testContext(t)); err != nil {
		t.Fatal(err)
	}
	r.waitDone()
	if err := parker.Park(testContext(t)); !errors.Is(err, hypervisor.ErrExited) {
		t.Errorf("park what has ended: %v", err)
	}
}

// TestMachineChangesHands has a parked machine adopted, by this process again.
func TestMachineChangesHands(t *testing.T) {
	first := boot(t, func(c *hypervisor.Config) { c.VCPUs = 1 })
	adopter, ok := Backend().(hypervisor.Adopter)
	if !ok {
		t.Skip("this system's machines cannot be adopted")
	}
	boot := first.greet(testContext(t)).BootId
	if err := first.Machine.(hypervisor.Parker).Park(testContext(t)); err != nil {
		t.Fatal(err)
	}
	record, book := first.Machine.(hypervisor.Transferable).Record(), testBook(t)
	m, err := adopter.Adopt(testContext(t), record, book)
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Machine.(hypervisor.Transferable).Disown(); err != nil || first.book.Len() != 0 {
		t.Errorf("disown: %v, %d receipts", err, first.book.Len())
	}
	if stopped, err := record.Process.Stopped(); err != nil || !stopped {
		t.Errorf("still parked: %v, %v", stopped, err)
	}
	if err := m.(hypervisor.Parker).Unpark(testContext(t)); err != nil {
		t.Fatal(err)
	}
	second := newRig(t, m, first.cfg, book)
	if now := second.greet(testContext(t)).BootId; now != boot {
		t.Errorf("boot id %s became %s", boot, now)
	}
	if err := second.PowerOff(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if exit := second.waitDone(); exit.Reason != hypervisor.ExitPowerOff {
		t.Errorf("exit %+v", exit)
	}
	if _, err := adopter.Adopt(testContext(t), record, testBook(t)); !errdefs.IsNotFound(err) {
		t.Errorf("adopt what has ended: %v", err)
	}
}

// TestUsage is that there is something to be told, running or parked.
func TestUsage(t *testing.T) {
	r := boot(t, func(c *hypervisor.Config) { c.VCPUs = 1 })
	measurer, ok := r.Machine.(hypervisor.Measurer)
	if !ok {
		t.Skip("this system's machines cannot be measured")
	}
	const mib = 1 << 20
	var before hypervisor.Usage
	for _, state := range []string{"running", "parked"} {
		if parker, ok := r.Machine.(hypervisor.Parker); ok && state == "parked" {
			if err := parker.Park(testContext(t)); err != nil {
				t.Fatal(err)
			}
		}
		u, err := measurer.Usage(testContext(t))
		if err != nil {
			t.Fatalf("%s: %v", state, err)
		}
		t.Logf("%s: RSS %d MiB, PSS %d, private dirty %d, of these the guest's %d; CPU %v; %d exits", state,
			u.RSS/mib, u.PSS/mib, u.PrivateDirty/mib, u.GuestPrivateDirty/mib, time.Duration(u.CPUNanoseconds), u.VMExits)
		// A guest that has booted has written some of its memory, and taken time.
		// The monitor's is told of one that is parked as well, on every system.
		least := uint64(4 * mib)
		if state == "running" {
			least = 16 * mib
		}
		if max(u.RSS, u.GuestPrivateDirty) < least || u.RSS > uint64(r.cfg.MemoryMiB+1024)*mib || u.CPUNanoseconds < uint64(time.Millisecond) || u.CPUNanoseconds < before.CPUNanoseconds {
			t.Errorf("%s: %+v after %+v", state, u, before)
		}
		before = u
	}
}

// TestCheckpointAndRestore saves a machine and makes two of it.
func TestCheckpointAndRestore(t *testing.T) {
	restorer, ok := Backend().(hypervisor.Restorer)
	if !ok {
		t.Skip("this system's machines cannot be restored")
	}
	dir := t.TempDir()
	r := boot(t, func(c *hypervisor.Config) { c.CheckpointDir = dir })
	boot := r.greet(testContext(t))
	began := time.Now()
	err := r.Machine.(hypervisor.Checkpointer).Checkpoint(testContext(t))
	if errdefs.IsNotImplemented(err) || errdefs.IsFailedPrecondition(err) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("saved in %v", time.Since(began).Round(time.Millisecond))
	if exit := r.waitDone(); exit.Reason != hypervisor.ExitPowerOff {
		t.Errorf("exit %+v", exit)
	}
	if err := r.Destroy(testContext(t)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		cfg, book := r.cfg, testBook(t)
		cfg.ID, cfg.Dir, cfg.CheckpointDir = testConfig(t).ID, t.TempDir(), ""
		began := time.Now()
		m, err := restorer.Restore(testContext(t), cfg, dir, book)
		if err != nil {
			t.Fatal(err)
		}
		clone := newRig(t, m, cfg, book)
		t.Logf("restored, and the agent answers, in %v", time.Since(began).Round(time.Millisecond))
		if now := clone.greet(testContext(t)); now.BootId != boot.BootId {
			t.Errorf("boot id %s became %s", boot.BootId, now.BootId)
		}
	}
}
