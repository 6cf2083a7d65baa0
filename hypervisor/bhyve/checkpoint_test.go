package bhyve

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor/internal/checkpoint"
	"github.com/containerd/errdefs"
)

// savable is a guest that runs until it is saved.
const savable = `: >"$3"/loaded; : >"$3"/active; until [ -e "$3"/saved ]; do :; done; exit 5`

func (r *rig) read(t *testing.T, name string) (g guest) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(r.cfg.Dir, name))
	if err == nil {
		err = json.Unmarshal(data, &g)
	}
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func TestCheckpointAndRestore(t *testing.T) {
	if runtime.NumCPU() < 2 {
		t.Skip("restoring takes two CPUs")
	}
	r := newRig(t, savable)
	dir := t.TempDir()
	r.cfg.CheckpointDir = dir
	m := r.launch(t).(*machine)
	conf, err := os.ReadFile(filepath.Join(r.cfg.Dir, configFile))
	if err != nil || !strings.Contains(string(conf), "vcpu.0.cpuset=0\nvcpu.1.cpuset=0\n") {
		t.Errorf("it may run on every CPU (%v):\n%s", err, conf)
	}
	// Also one that is parked.
	if err := m.Park(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := m.Checkpoint(t.Context()); err != nil {
		t.Fatal(err)
	}
	if exit := ended(t, m); exit.Reason != hypervisor.ExitPowerOff {
		t.Errorf("exit %+v", exit)
	}
	if err := m.Checkpoint(t.Context()); !errors.Is(err, hypervisor.ErrExited) {
		t.Errorf("once more: %v", err)
	}
	if err := m.Destroy(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.clean(t)
	if is, err := checkpoint.Exists(dir); !is || err != nil {
		t.Fatalf("no checkpoint: %v", err)
	}
	if _, err := r.Launch(t.Context(), r.cfg, r.book); !errdefs.IsAlreadyExists(err) || r.book.Len() != 0 {
		t.Errorf("launch where a checkpoint is: %v", err)
	}

	// Another machine of it, on another tap.
	clone := newRig(t, running)
	clone.cfg.ID, clone.cfg.Kernel, clone.cfg.Initrd = "clone", r.cfg.Kernel, r.cfg.Initrd
	c, err := clone.Restore(t.Context(), clone.cfg, dir, clone.book)
	if err != nil {
		t.Fatal(err)
	}
	g := clone.read(t, guestFile)
	if want := filepath.Join(dir, memoryName); g.Restore != want {
		t.Errorf("restores from %q", g.Restore)
	}
	if clone.vmm.unpinned != c.Pid() {
		t.Errorf("process %d was let onto all CPUs, want %d", clone.vmm.unpinned, c.Pid())
	}
	path, argv, err := g.command("/m", 4)
	if err != nil || path != cpuset || !slices.Equal(argv, []string{"cpuset", "-l", "1-3", program, "-k", "/m/bhyve.conf", "-r", g.Restore, "csb-clone"}) {
		t.Errorf("it is run by %s as %q: %v", path, argv, err)
	}
	if _, argv, err := g.command("/m", 2); err != nil || argv[2] != "1" {
		t.Errorf("on two CPUs as %q: %v", argv, err)
	}
	if _, _, err := g.command("/m", 1); !errdefs.IsNotImplemented(err) {
		t.Errorf("on one CPU: %v", err)
	}
	if err := c.Destroy(t.Context()); err != nil {
		t.Fatal(err)
	}
	clone.clean(t)

	for why, change := range map[string]func(*hypervisor.Config){
		"vCPUs":        func(c *hypervisor.Config) { c.VCPUs++ },
		"command line": func(c *hypervisor.Config) { c.Cmdline = nil },
		"hardware": func(c *hypervisor.Config) {
			c.NIC = &hypervisor.NIC{Tap: "tap7", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 7}}
		},
	} {
		cfg := clone.cfg
		change(&cfg)
		if _, err := clone.Restore(t.Context(), cfg, dir, clone.book); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), why) || clone.book.Len() != 0 {
			t.Errorf("other %s: %v", why, err)
		}
	}
	again := clone.cfg
	again.CheckpointDir = t.TempDir()
	if _, err := clone.Restore(t.Context(), again, dir, clone.book); !errdefs.IsNotImplemented(err) {
		t.Errorf("to be saved again: %v", err)
	}
	clone.vmm.cannotSave = true
	if _, err := clone.Restore(t.Context(), clone.cfg, dir, clone.book); !errdefs.IsNotImplemented(err) {
		t.Errorf("on a kernel that cannot: %v", err)
	}
}

func TestCheckpointThatCannotBe(t *testing.T) {
	launched := func(t *testing.T, script string, change func(*rig)) (*rig, *machine) {
		r := newRig(t, script)
		r.cfg.CheckpointDir = t.TempDir()
		change(r)
		return r, r.launch(t).(*machine)
	}
	goesOn := func(t *testing.T, r *rig, m *machine) {
		t.Helper()
		if m.Process.HasExited() {
			t.Error("it was its end")
		}
		if dir := r.cfg.CheckpointDir; dir != "" {
			if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
				t.Errorf("left %v (%v)", left, err)
			}
		}
	}
	t.Run("no directory", func(t *testing.T) {
		r, m := launched(t, running, func(r *rig) { r.cfg.CheckpointDir = "" })
		if err := m.Checkpoint(t.Context()); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("got %v", err)
		}
		goesOn(t, r, m)
	})
	t.Run("disks", func(t *testing.T) {
		disk := filepath.Join(t.TempDir(), "disk")
		if err := os.WriteFile(disk, make([]byte, hypervisor.SectorSize), 0o600); err != nil {
			t.Fatal(err)
		}
		r, m := launched(t, running, func(r *rig) { r.cfg.CheckpointDir, r.cfg.Disks = "", []hypervisor.Disk{{Path: disk}} })
		conf, err := os.ReadFile(filepath.Join(r.cfg.Dir, configFile))
		if err != nil || !strings.Contains(string(conf), "=virtio-blk\npci.0.3.0.path="+disk+"\npci.0.3.0.ro=false\n") {
			t.Errorf("it has no disk (%v):\n%s", err, conf)
		}
		// Nor in the hands of another, who knows them by what is in its directory.
		heir, err := r.Adopt(t.Context(), m.Record(), r.heirsBook(t))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range []hypervisor.Machine{m, heir} {
			if err := m.(*machine).Checkpoint(t.Context()); !errdefs.IsNotImplemented(err) || !strings.Contains(err.Error(), "disks") {
				t.Errorf("got %v", err)
			}
		}
		goesOn(t, r, m)
		if err := heir.(*machine).Disown(); err != nil {
			t.Error(err)
		}
		if _, err := r.Restore(t.Context(), r.cfg, t.TempDir(), r.book); !errdefs.IsNotImplemented(err) {
			t.Errorf("restore: %v", err)
		}
	})
	t.Run("no kernel for it", func(t *testing.T) {
		r, m := launched(t, running, func(r *rig) { r.vmm.cannotSave = true })
		if err := m.Checkpoint(t.Context()); !errdefs.IsNotImplemented(err) || !strings.Contains(err.Error(), "BHYVE_SNAPSHOT") {
			t.Errorf("got %v", err)
		}
		goesOn(t, r, m)
	})
	t.Run("bhyve refuses", func(t *testing.T) {
		r, m := launched(t, "echo Failed to snapshot device state. >&2; "+running, func(r *rig) { r.vmm.saveFails = true })
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for m.Process.Said() == "" && t.Context().Err() == nil {
			<-tick.C
		}
		gaveUp := errors.New("it has long been done")
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(gaveUp)
		if err := m.Checkpoint(ctx); !errors.Is(err, gaveUp) || !strings.Contains(err.Error(), "device state") {
			t.Errorf("got %v", err)
		}
		goesOn(t, r, m)
	})
	t.Run("it ends another way", func(t *testing.T) {
		r, m := launched(t, strings.Replace(savable, "exit 5", "exit 1", 1), func(*rig) {})
		if err := m.Checkpoint(t.Context()); !errors.Is(err, hypervisor.ErrExited) {
			t.Errorf("got %v", err)
		}
		if is, err := checkpoint.Exists(r.cfg.CheckpointDir); is || err != nil {
			t.Errorf("a checkpoint all the same: %v", err)
		}
	})
}

func TestCheckSaved(t *testing.T) {
	const meta = `{"kern_structs": [{"size": 10, "file_offset": 0}], "devices": [{"size": 5, "file_offset": 10}]}`
	for name, tc := range map[string]struct {
		memory, kern int64
		meta, why    string
	}{
		"whole":             {1 << 20, 15, meta, ""},
		"memory too short":  {1<<20 - 1, 15, meta, "the guest's memory"},
		"devices too short": {1 << 20, 14, meta, "has 14"},
		"half a file":       {1 << 20, 15, meta[:20], metaName},
		"nothing in it":     {1 << 20, 15, "{}", "names 0 bytes"},
	} {
		dir := t.TempDir()
		for name, data := range map[string]string{memoryName: "", kernName: "", metaName: tc.meta} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(os.Truncate(filepath.Join(dir, memoryName), tc.memory), os.Truncate(filepath.Join(dir, kernName), tc.kern)); err != nil {
			t.Fatal(err)
		}
		switch err := checkSaved(dir, 1); {
		case tc.why == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case tc.why != "" && (err == nil || !strings.Contains(err.Error(), tc.why)):
			t.Errorf("%s: %v, want that %s", name, err, tc.why)
		}
	}
}

func TestAwaitTurn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	if err := awaitTurn(t.Context(), path); err != nil {
		t.Errorf("nobody there: %v", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan error, 1)
	go func() { done <- awaitTurn(t.Context(), path) }()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	// The end of its request, which is only now its turn.
	if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("it asks for something: %d bytes, %v", n, err)
	}
	select {
	case err := <-done:
		t.Errorf("it did not wait its turn: %v", err)
	default:
	}
	c.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
