//go:build linux

package qemu

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto"
	agentv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto/v1"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor/internal/checkpoint"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/thaw"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/types/known/emptypb"
)

// saved boots a machine and saves it. The configuration has no directory to
// save to any more.
func saved(t *testing.T, changes ...func(*hypervisor.Config)) (cfg hypervisor.Config, dir string) {
	t.Helper()
	dir = t.TempDir()
	b := boot(t, append(changes, func(c *hypervisor.Config) {
		c.CheckpointDir = dir
		c.NIC.NetNS, c.NIC.Tap = tapInNamespace(t)
	})...)

	// What a template does before it is saved must not make its clones one, either.
	if _, err := agentv1.NewRehearsalClient(dial(t, b)).Rehearse(testContext(t), &emptypb.Empty{}); err != nil {
		t.Fatal(err)
	}

	// A disk that is full: it goes on.
	if err := os.Symlink("/dev/full", filepath.Join(dir, stateName)); err != nil {
		t.Fatal(err)
	}
	if err := b.Machine.(hypervisor.Checkpointer).Checkpoint(testContext(t)); err == nil {
		t.Fatal("saved to a full disk")
	}
	if is, err := checkpoint.Exists(dir); is || err != nil {
		t.Errorf("what could not be saved is there: %v", err)
	}
	greet(t, b.system)

	began := time.Now()
	if err := b.Machine.(hypervisor.Checkpointer).Checkpoint(testContext(t)); err != nil {
		t.Fatal(err)
	}
	t.Logf("checkpoint in %v", time.Since(began))
	if exit := waitDone(t, b); exit.Reason != hypervisor.ExitPowerOff {
		t.Errorf("exit %+v", exit)
	}
	if err := b.Machine.(*machine).Checkpoint(t.Context()); !errors.Is(err, hypervisor.ErrExited) {
		t.Errorf("checkpoint of what has ended: %v", err)
	}
	if err := b.Destroy(testContext(t)); err != nil {
		t.Fatal(err)
	}
	cfg = b.cfg
	cfg.CheckpointDir = ""
	return cfg, dir
}

// restored is a machine restored from the checkpoint in dir, and destroyed with
// the test.
func restored(t *testing.T, cfg hypervisor.Config, dir string) booted {
	t.Helper()
	cfg.Dir = t.TempDir()
	if cfg.NIC != nil {
		cfg.NIC = &hypervisor.NIC{MAC: net.HardwareAddr{2, 0, 0, 0, 0, 8}}
		cfg.NIC.NetNS, cfg.NIC.Tap = tapInNamespace(t)
	}
	book := testBook(t)
	began := time.Now()
	m, err := New().Restore(testContext(t), cfg, dir, book)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { destroy(t, m, cfg, book) })
	running := time.Since(began)
	system := hello(t, m)
	t.Logf("restored and running in %v, agent answered after %v", running, time.Since(began))
	return booted{m, cfg, book, system}
}

func TestCheckpointAndClones(t *testing.T) {
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 7}
	cfg, dir := saved(t, func(c *hypervisor.Config) { c.NIC = &hypervisor.NIC{MAC: mac} })
	// Both at once, of the same memory.
	first := restored(t, cfg, dir)
	second := restored(t, cfg, dir)
	differ(t, first, second)
	// The address is in the saved state: the agent sets the one that it is to be.
	attached(t, first.Machine.(*machine), mac)
	// One that is thawed again, as after it was parked, stays who it was.
	before := thawed(t, first)
	if err := errors.Join(first.Machine.(*machine).Park(testContext(t)), first.Machine.(*machine).Unpark(testContext(t))); err != nil {
		t.Fatal(err)
	}
	if after := thawed(t, first); after.BootID != before.BootID || after.Uptime <= before.Uptime {
		t.Errorf("thawed %+v, and again %+v", before, after)
	}

	// They share what they have not written.
	u, err := first.Machine.(hypervisor.Measurer).Usage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	const mib = 1 << 20
	t.Logf("a clone's RSS %d MiB, PSS %d, private dirty %d, of these the guest's %d",
		u.RSS/mib, u.PSS/mib, u.PrivateDirty/mib, u.GuestPrivateDirty/mib)
	if u.GuestPrivateDirty == 0 || u.GuestPrivateDirty > 16*mib || u.GuestPrivateDirty > u.PrivateDirty || u.PSS >= u.RSS || u.CPUNanoseconds == 0 {
		t.Errorf("usage %+v", u)
	}
	if err := first.Machine.(*machine).Checkpoint(testContext(t)); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("saved without a directory for it: %v", err)
	}
	greet(t, first.system)

	// One that can be saved again has a copy.
	again := cfg
	again.CheckpointDir = t.TempDir()
	third := restored(t, again, dir)
	if err := third.Machine.(*machine).Checkpoint(testContext(t)); err != nil {
		t.Fatal(err)
	}
	greet(t, restored(t, cfg, again.CheckpointDir).system)

	// The clones have not written to what they share.
	if _, err := checkpoint.Open(dir); err != nil {
		t.Error(err)
	}
	refusals(t, cfg, dir)
}

// differ thaws two clones of a machine whose agent has been talked to, and fails
// the test for what they have in common.
func differ(t *testing.T, first, second booted) {
	t.Helper()
	for _, b := range []booted{first, second} {
		if id := greet(t, b.system).BootId; id != "" {
			t.Fatalf("boot id %s before the thaw: clones will share it", id)
		}
		_, err := agentv1.NewBundleClient(dial(t, b)).Create(testContext(t), &agentv1.CreateBundleRequest{Id: "early", Config: []byte(`{"ociVersion": "1.2.0"}`)})
		if !errdefs.IsFailedPrecondition(errgrpc.ToNative(err)) {
			t.Errorf("a container before the thaw: %v", err)
		}
	}
	// The boot id is the first that the kernel draws after the thaw.
	a, b := thawed(t, first), thawed(t, second)
	if a.BootID == b.BootID || a.MachineID == b.MachineID {
		t.Errorf("clones are one: %+v, %+v", a, b)
	}
	if got := greet(t, first.system).BootId; got != a.BootID {
		t.Errorf("boot id %s, thawed as %s", got, a.BootID)
	}
}

// dial is a connection to the agent that ends with the test.
func dial(t *testing.T, m hypervisor.Machine) *ttrpc.Client {
	t.Helper()
	conn, err := m.Dial(testContext(t), agentproto.PortControl)
	if err != nil {
		t.Fatal(err)
	}
	c := ttrpc.NewClient(conn)
	t.Cleanup(func() { c.Close() })
	return c
}

func thawed(t *testing.T, b booted) thaw.Proof {
	t.Helper()
	c := dial(t, b)
	began := time.Now()
	p, err := thaw.Do(testContext(t), agentv1.NewThawClient(c), thaw.Identity{Hostname: "clone"})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("thawed in %v: boot id %s, clock %v ahead, give or take %v, after %d corrections",
		time.Since(began), p.BootID, p.Clock.Error, p.Clock.Bound, p.Clock.Corrections)
	if !p.Clock.IsRight() {
		t.Errorf("the clock is %v ahead, give or take %v", p.Clock.Error, p.Clock.Bound)
	}
	return p
}

// refusals tries what may not be restored. It spoils the checkpoint.
func refusals(t *testing.T, cfg hypervisor.Config, dir string) {
	refused := func(name, why string, cfg hypervisor.Config) {
		t.Helper()
		cfg.Dir = t.TempDir()
		book := testBook(t)
		_, err := New().Restore(testContext(t), cfg, dir, book)
		if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), why) || book.Len() != 0 {
			t.Errorf("%s: %v, %d receipts; want that %q", name, err, book.Len(), why)
		}
		if left, err := os.ReadDir(cfg.Dir); err != nil || len(left) != 0 {
			t.Errorf("%s: left in the machine's directory: %v (%v)", name, left, err)
		}
	}
	for name, c := range map[string]struct {
		why    string
		change func(*hypervisor.Config)
	}{
		"another size":         {"MiB of memory", func(c *hypervisor.Config) { c.MemoryMiB *= 2 }},
		"other processors":     {"vCPUs", func(c *hypervisor.Config) { c.VCPUs++ }},
		"another command line": {"command line", func(c *hypervisor.Config) { c.Cmdline = []string{"x"} }},
		"another kernel":       {"kernel", func(c *hypervisor.Config) { c.Kernel = c.Initrd }},
		"no network interface": {"hardware", func(c *hypervisor.Config) { c.NIC = nil }},
	} {
		other := cfg
		c.change(&other)
		refused(name, c.why, other)
	}
	state := filepath.Join(dir, stateName)
	if err := os.Rename(state, state+".away"); err != nil {
		t.Fatal(err)
	}
	refused("a state that is gone", stateName+" is missing", cfg)
	if err := os.Rename(state+".away", state); err != nil {
		t.Fatal(err)
	}
	spoil(t, state, 1000)
	refused("a state that was altered", stateName+" was changed", cfg)
	spoil(t, state, 1000)
	spoil(t, filepath.Join(dir, memoryName), 100<<20)
	refused("a memory that was altered", memoryName+" was changed", cfg)
	if err := os.Truncate(filepath.Join(dir, memoryName), 200<<20); err != nil {
		t.Fatal(err)
	}
	refused("a memory that was truncated", memoryName+" has", cfg)
}

// spoil turns the bits of one byte over: twice is as before.
func spoil(t *testing.T, path string, at int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	_, err = f.ReadAt(b[:], at)
	if err == nil {
		b[0] = ^b[0]
		_, err = f.WriteAt(b[:], at)
	}
	if err != nil {
		t.Fatal(err)
	}
}
