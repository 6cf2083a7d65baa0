//go:build linux

package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
)

// launcherEnv makes the test's program launch a machine of this configuration,
// print its record and wait to be killed.
const launcherEnv = "TEST_LAUNCHER_OF_A_MACHINE"

func TestMain(m *testing.M) {
	config := os.Getenv(launcherEnv)
	if config == "" {
		os.Exit(m.Run())
	}
	if err := launch(config); err != nil {
		log.L.Fatal(err)
	}
	select {}
}

func launch(config string) error {
	var cfg hypervisor.Config
	if err := json.Unmarshal([]byte(config), &cfg); err != nil {
		return err
	}
	// Beside the machine's directory, which has to be empty in the end.
	book, err := receipt.Open(cfg.Dir + ".receipts")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	m, err := New().Launch(ctx, cfg, book)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(m.(hypervisor.Transferable).Record())
}

// launchAndDie launches a machine in a process that is killed right after, and
// returns what it is known by and the book that the process has left.
func launchAndDie(t *testing.T, cfg hypervisor.Config) (r hypervisor.Record, left *receipt.Book) {
	t.Helper()
	config, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	launcher := exec.Command(os.Args[0])
	launcher.Env = append(os.Environ(), launcherEnv+"="+string(config))
	launcher.Stderr = os.Stderr
	out, err := launcher.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := launcher.Start(); err != nil {
		t.Fatal(err)
	}
	defer launcher.Wait()
	defer launcher.Process.Kill()
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(line, &r); err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	launcher.Process.Kill()
	launcher.Wait()
	if left, err = receipt.Open(cfg.Dir + ".receipts"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := left.UndoAll(ctx); err != nil {
			t.Error(err)
		}
	})
	return r, left
}

func adoptMachine(t *testing.T, r hypervisor.Record) (*machine, *receipt.Book) {
	t.Helper()
	book := testBook(t)
	m, err := New().Adopt(testContext(t), r, book)
	if err != nil {
		t.Fatal(err)
	}
	return m.(*machine), book
}

// TestMachineChangesHands follows one machine from a launcher that is killed
// over two owners to its end.
func TestMachineChangesHands(t *testing.T) {
	cfg := guestConfig(t)
	cfg.Dir = filepath.Join(cfg.Dir, "machine")
	if err := os.Mkdir(cfg.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	cfg.NIC = &hypervisor.NIC{MAC: net.HardwareAddr{2, 0, 0, 0, 0, 7}}
	record, left := launchAndDie(t, cfg)

	first, firstBook := adoptMachine(t, record)
	if first.ID() != cfg.ID || first.Pid() != record.Process.Pid || firstBook.Len() != left.Len() {
		t.Errorf("id %q, pid %d, %d receipts; want those of %+v and %d", first.ID(), first.Pid(), firstBook.Len(), record, left.Len())
	}
	system := hello(t, first)
	attached(t, first, cfg.NIC.MAC)
	ctx := testContext(t)
	for range 3 {
		if err := first.Park(ctx); err != nil {
			t.Fatal(err)
		}
		if stopped, err := record.Process.Stopped(); err != nil || !stopped {
			t.Fatalf("parked, and stopped: %v, %v", stopped, err)
		}
		if err := first.Unpark(ctx); err != nil {
			t.Fatal(err)
		}
		greet(t, system)
	}

	// It changes hands parked; both have it for a while.
	if err := first.Park(ctx); err != nil {
		t.Fatal(err)
	}
	second, secondBook := adoptMachine(t, first.Record())
	if got := second.Record(); got != record {
		t.Errorf("record %+v became %+v", record, got)
	}
	plugged := plugIn(t, second)
	if err := first.Disown(); err != nil || firstBook.Len() != 0 {
		t.Errorf("disown: %v, %d receipts", err, firstBook.Len())
	}
	if err := first.Destroy(ctx); err != nil {
		t.Error(err)
	}
	// One who never gets through to the monitor.
	passing, _ := adoptMachine(t, record)
	if err := passing.Disown(); err != nil {
		t.Error(err)
	}
	if stopped, err := record.Process.Stopped(); err != nil || !stopped {
		t.Errorf("still parked: %v, %v", stopped, err)
	}
	if err := second.Unpark(ctx); err != nil {
		t.Fatal(err)
	}
	hello(t, second)
	// Its tap has been taken elsewhere meanwhile, and ends with it there.
	if is, err := isPlugged(plugged); err != nil || !is {
		t.Errorf("plugged in: %v, %v", is, err)
	}
	attached(t, second, cfg.NIC.MAC)

	// Powered off while it is parked: the owner knows how it ended, though it is
	// not its parent.
	if err := errors.Join(second.Park(ctx), second.PowerOff(ctx)); err != nil {
		t.Fatal(err)
	}
	if exit := waitDone(t, second); exit.Reason != hypervisor.ExitPowerOff {
		t.Errorf("exit %+v", exit)
	}
	if is, err := isPlugged(plugged); err != nil || is {
		t.Errorf("its tap is still there: %v, %v", is, err)
	}
	if err := second.Park(ctx); !errors.Is(err, hypervisor.ErrExited) {
		t.Errorf("park what has ended: %v", err)
	}
	// An heir that comes too late cleans up.
	thirdBook := testBook(t)
	if _, err := New().Adopt(ctx, record, thirdBook); !errdefs.IsNotFound(err) || thirdBook.Len() != 0 {
		t.Errorf("adopt what has ended: %v, %d receipts", err, thirdBook.Len())
	}
	if left, err := os.ReadDir(cfg.Dir); err != nil || len(left) != 0 {
		t.Errorf("left in the machine's directory: %v (%v)", left, err)
	}
	if err := second.Destroy(ctx); err != nil || secondBook.Len() != 0 {
		t.Errorf("destroy: %v, %d receipts", err, secondBook.Len())
	}
}

func TestAdoptRefuses(t *testing.T) {
	for name, r := range map[string]hypervisor.Record{
		"another backend's": {Backend: "bhyve", ID: "a", Dir: "/tmp"},
		"no id":             {Backend: "qemu", Dir: "/tmp"},
		"no directory":      {Backend: "qemu", ID: "a"},
	} {
		if _, err := New().Adopt(t.Context(), r, nil); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	gone := hypervisor.Record{Backend: "qemu", ID: "a", Dir: t.TempDir()}
	gone.Process.Pid, gone.Process.Start = os.Getpid(), 1
	if _, err := New().Adopt(t.Context(), gone, nil); !errdefs.IsNotFound(err) {
		t.Errorf("a process whose pid another has: %v", err)
	}
}
