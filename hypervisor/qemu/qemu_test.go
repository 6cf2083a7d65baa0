//go:build linux

package qemu

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	agentv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto/v1"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/proc"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"
	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	"github.com/google/uuid"
	"golang.org/x/sys/unix"
)

// longer than a boot in software on a busy machine.
const patience = 90 * time.Second

// guestDirEnv names the directory of the guest image that the tests boot.
const guestDirEnv = "BHYVE_GUEST_DIR"

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func testBook(t *testing.T) *receipt.Book {
	t.Helper()
	book, err := receipt.Open(filepath.Join(t.TempDir(), "receipts"))
	if err != nil {
		t.Fatal(err)
	}
	return book
}

func requireQEMU(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: makes a link")
	}
	if _, err := New().Capabilities(t.Context()); errdefs.IsUnavailable(err) {
		t.Skip(err)
	}
}

func guestConfig(t *testing.T) hypervisor.Config {
	t.Helper()
	requireQEMU(t)
	dir := os.Getenv(guestDirEnv)
	if dir == "" {
		t.Skipf("boots the guest image in $%s, which is not set", guestDirEnv)
	}
	kernel, err := filepath.Glob(filepath.Join(dir, "vmlinu[xz]"))
	if err != nil || len(kernel) != 1 {
		t.Fatalf("kernel in %s: %q, %v", dir, kernel, err)
	}
	return hypervisor.Config{
		ID: "test-" + strings.ToLower(t.Name()), Dir: t.TempDir(), VCPUs: 1, MemoryMiB: 256,
		Kernel: kernel[0], Initrd: filepath.Join(dir, "initrd.img"),
	}
}

type booted struct {
	hypervisor.Machine
	cfg    hypervisor.Config
	book   *receipt.Book
	system agentv1.SystemService
}

// boot launches the guest image, as changed, and says hello to the agent.
func boot(t *testing.T, changes ...func(*hypervisor.Config)) booted {
	t.Helper()
	cfg, book, ctx := guestConfig(t), testBook(t), testContext(t)
	for _, change := range changes {
		change(&cfg)
	}
	m, err := New().Launch(ctx, cfg, book)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { destroy(t, m, cfg, book) })
	return booted{m, cfg, book, hello(t, m)}
}

// destroy ends a machine and sees that nothing is left of it.
func destroy(t *testing.T, m hypervisor.Machine, cfg hypervisor.Config, book *receipt.Book) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := m.Destroy(ctx); err != nil {
		t.Error(err)
	}
	if t.Failed() {
		t.Logf("console:\n%s", m.ConsoleTail())
	}
	if n := book.Len(); n != 0 {
		t.Errorf("%d receipts left", n)
	}
	if left, err := os.ReadDir(cfg.Dir); err != nil || len(left) != 0 {
		t.Errorf("left in the machine's directory: %v (%v)", left, err)
	}
}

// hello talks to the agent of a machine, over a connection that ends with the
// test.
func hello(t *testing.T, m hypervisor.Machine) agentv1.SystemService {
	t.Helper()
	ctx := testContext(t)
	conn, err := hypervisor.DialReady(ctx, m, agentproto.PortControl)
	if err != nil {
		t.Fatal(err)
	}
	client := ttrpc.NewClient(conn)
	t.Cleanup(func() { client.Close() })
	system := agentv1.NewSystemClient(client)
	greet(t, system)
	return system
}

// greet has the agent answer a new nonce.
func greet(t *testing.T, system agentv1.SystemService) *agentv1.HelloResponse {
	t.Helper()
	nonce := []byte(uuid.NewString())
	answer, err := system.Hello(testContext(t), &agentv1.HelloRequest{Nonce: nonce})
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(answer.Nonce, nonce) {
		t.Fatalf("nonce %q came back as %q", nonce, answer.Nonce)
	}
	return answer
}

func waitDone(t *testing.T, m hypervisor.Machine) hypervisor.Exit {
	t.Helper()
	select {
	case <-m.Done():
	case <-time.After(patience):
		t.Fatal("the machine does not end")
	}
	return m.Exit()
}

func TestGuestPowersOff(t *testing.T) {
	m := boot(t)
	if _, err := m.system.PowerOff(testContext(t), &agentv1.PowerOffRequest{}); err != nil {
		t.Fatal(err)
	}
	if exit := waitDone(t, m); exit.Reason != hypervisor.ExitPowerOff {
		t.Errorf("exit %+v, want a power-off", exit)
	}
	if _, err := m.Dial(t.Context(), agentproto.PortControl); !errors.Is(err, hypervisor.ErrExited) {
		t.Errorf("dial after the end: %v, want that it has exited", err)
	}
	if err := m.PowerOff(t.Context()); !errors.Is(err, hypervisor.ErrExited) {
		t.Errorf("power off after the end: %v, want that it has exited", err)
	}
}

func TestMonitorPowersOff(t *testing.T) {
	m := boot(t)
	if err := m.PowerOff(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if exit := waitDone(t, m); exit.Reason != hypervisor.ExitPowerOff {
		t.Errorf("exit %+v, want a power-off", exit)
	}
}

func TestKilledMachine(t *testing.T) {
	m := boot(t)
	if err := unix.Kill(m.Pid(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if exit := waitDone(t, m); exit.Reason != hypervisor.ExitKilled || !strings.Contains(exit.Detail, "killed") {
		t.Errorf("exit %+v, want killed", exit)
	}
}

func TestReceiptsEndAMachineWithoutItsOwner(t *testing.T) {
	m := boot(t)
	if err := m.book.UndoAll(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if exit := waitDone(t, m); exit.Reason != hypervisor.ExitKilled {
		t.Errorf("exit %+v, want killed", exit)
	}
}

func TestPanicIsAResetAndIsOnTheConsole(t *testing.T) {
	cfg, book, ctx := guestConfig(t), testBook(t), testContext(t)
	cfg.Cmdline = []string{"rdinit=/nowhere", "root=nowhere"}
	m, err := New().Launch(ctx, cfg, book)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		for range 2 {
			if err := m.Destroy(ctx); err != nil {
				t.Error(err)
			}
		}
	}()
	if _, err := hypervisor.DialReady(ctx, m, agentproto.PortControl); !errors.Is(err, hypervisor.ErrExited) {
		t.Errorf("dial: %v, want that it has exited", err)
	}
	if exit := waitDone(t, m); exit.Reason != hypervisor.ExitReset {
		t.Errorf("exit %+v, want a reset", exit)
	}
	if tail := m.ConsoleTail(); !bytes.Contains(tail, []byte("Kernel panic")) {
		t.Errorf("no panic on the console: %q", tail)
	}
}

func TestDestroyEndsARunningMachine(t *testing.T) {
	m := boot(t)
	wantEmptyRoot(t, m.Pid())
	id, err := proc.Identify(m.Pid())
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Destroy(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if alive, err := id.Alive(); err != nil || alive {
		t.Errorf("alive: %v, %v", alive, err)
	}
	select {
	case <-m.Done():
	default:
		t.Error("destroyed, and not done")
	}
}

func TestLaunchThatQEMURefuses(t *testing.T) {
	requireQEMU(t)
	dir := t.TempDir()
	rubbish := filepath.Join(dir, "kernel")
	if err := os.WriteFile(rubbish, []byte("not a kernel"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := hypervisor.Config{ID: "rubbish", Dir: t.TempDir(), VCPUs: 1, MemoryMiB: 128, Kernel: rubbish, Initrd: rubbish}
	book := testBook(t)
	_, err := New().Launch(testContext(t), cfg, book)
	var launch *hypervisor.LaunchError
	if !errors.As(err, &launch) || launch.Phase != "start" || !strings.Contains(err.Error(), "kernel") {
		t.Errorf("got %v, want a launch error with what QEMU says of the kernel", err)
	}
	if book.Len() != 0 {
		t.Error("a receipt is left")
	}
	if left, err := os.ReadDir(cfg.Dir); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v (%v)", left, err)
	}
}

func TestLaunchRefusesBeforeItTakesAnything(t *testing.T) {
	requireQEMU(t)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	good := hypervisor.Config{ID: "x", Dir: t.TempDir(), VCPUs: 1, MemoryMiB: 128, Kernel: file, Initrd: file}
	for name, c := range map[string]struct {
		change func(*hypervisor.Config)
		is     func(error) bool
	}{
		"no kernel":         {func(c *hypervisor.Config) { c.Kernel = filepath.Join(c.Dir, "none") }, errdefs.IsNotFound},
		"no initrd":         {func(c *hypervisor.Config) { c.Initrd = filepath.Join(c.Dir, "none") }, errdefs.IsNotFound},
		"too many vCPUs":    {func(c *hypervisor.Config) { c.VCPUs = maxVCPUs + 1 }, errdefs.IsInvalidArgument},
		"no disk":           {func(c *hypervisor.Config) { c.Disks = []hypervisor.Disk{{Path: filepath.Join(c.Dir, "none")}} }, errdefs.IsNotFound},
		"empty disk":        {func(c *hypervisor.Config) { c.Disks = []hypervisor.Disk{{Path: file}} }, errdefs.IsInvalidArgument},
		"long command line": {func(c *hypervisor.Config) { c.Cmdline = []string{strings.Repeat("x", maxCmdline)} }, errdefs.IsInvalidArgument},
	} {
		cfg, book := good, testBook(t)
		c.change(&cfg)
		if _, err := New().Launch(testContext(t), cfg, book); !c.is(err) {
			t.Errorf("%s: %v", name, err)
		}
		if book.Len() != 0 {
			t.Errorf("%s: a receipt is left", name)
		}
	}
}

func TestCancelledLaunchLeavesNothing(t *testing.T) {
	cfg, book := guestConfig(t), testBook(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := New().Launch(ctx, cfg, book); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want cancelled", err)
	}
	if book.Len() != 0 {
		t.Error("a receipt is left")
	}
}
