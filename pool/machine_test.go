//go:build linux || freebsd

package pool

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor/host"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/proc"
	poolv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/pool/api/v1"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/pool/client"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"
)

// guestEnv names the directory of a guest image, as for the other tests with
// machines.
const guestEnv = "BHYVE_GUEST_DIR"

// realEnv has a test's daemon make real machines.
const realEnv = "POOLTEST_REAL"

// bootPatience is longer than boots in software within software, on a busy machine.
const bootPatience = 8 * time.Minute

// TestMachines is the life of a pool of real machines: saved, restored, parked,
// taken up after a crash, claimed, and refused when the checkpoint is bad.
func TestMachines(t *testing.T) {
	guestDir := os.Getenv(guestEnv)
	if guestDir == "" {
		t.Skip(guestEnv + " is not set")
	}
	r := newRig(t)
	r.patience = bootPatience
	d := r.startDaemon(realEnv + "=1")
	c := r.serves(d)
	tmpl := r.add(c, &poolv1.Template{
		Name: "real", GuestDir: guestDir, High: 3, Cold: true, Rehearse: true,
		Shape: &poolv1.Shape{Vcpus: 1, MemoryMib: 256},
	})
	dir := r.checkpointDir(c)
	r.warm(c, tmpl.Name, 3)
	if s := r.status(c).Templates[0]; s.MadeCold != 3 || s.MadeBoot != 0 {
		t.Errorf("three machines of a checkpoint: %v", s)
	}

	// What waits outlives the daemon, stopped.
	d.kill()
	waiting := r.recorded()
	for _, id := range waiting {
		if stopped, err := id.Stopped(); err != nil || !stopped {
			t.Errorf("machine %s without a daemon: stopped: %v, %v", id, stopped, err)
		}
	}
	// One of them is forgotten.
	lost := r.entryDirs()[0]
	if err := os.RemoveAll(lost); err != nil {
		t.Fatal(err)
	}
	d = r.startDaemon(realEnv + "=1")
	c = r.serves(d)
	if s := r.status(c).Templates[0]; s.Hot != 2 || len(waiting) != 3 {
		t.Errorf("after the restart: %v, machines %v", s, waiting)
	}
	if found := r.check(c); len(found) != 1 || found[0].Kind != kindMachine || found[0].Name != filepath.Base(lost) {
		t.Errorf("check: %v, want machine %s", found, filepath.Base(lost))
	}
	if _, err := c.GC(r.context(), nil); err != nil {
		t.Error(err)
	}
	if found, alive := r.check(c), r.alive(waiting); len(found) != 0 || len(alive) != 2 {
		t.Errorf("after gc: %v, and of %v there are %v", found, waiting, alive)
	}

	seen := map[string]bool{}
	for range 2 {
		m := r.claimReal(c, tmpl)
		if m.Tier != poolv1.Tier_TIER_HOT || seen[m.ID()] {
			t.Errorf("machine %s from %v, after %v", m.ID(), m.Tier, seen)
		}
		seen[m.ID()] = true
	}

	// One bit of the memory.
	memory := largest(t, filepath.Join(dir, "machine"))
	if err := flip(memory, 100<<20); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Evict(t.Context(), &poolv1.EvictRequest{}); err != nil {
		t.Fatal(err)
	}
	r.warm(c, tmpl.Name, 1)
	if !strings.Contains(d.said(), filepath.Base(memory)+" was changed") {
		t.Errorf("the log says nothing of the altered checkpoint:\n%s", d.said())
	}
	r.claimReal(c, tmpl)

	if _, err := c.RemoveTemplate(r.context(), &poolv1.TemplateRequest{Name: tmpl.Name}); err != nil {
		t.Error(err)
	}
	if _, err := c.GC(r.context(), nil); err != nil {
		t.Error(err)
	}
	r.eventually(func() error {
		left, err := filepath.Glob(filepath.Join(options(r.dir).State, entriesDir, "*"))
		if err == nil && len(left) > 0 {
			err = fmt.Errorf("entries are left: %q", left)
		}
		return err
	})
	_ = d.cmd.Process.Signal(unix.SIGTERM)
	<-d.done
	for _, id := range waiting {
		if alive, err := id.Alive(); err != nil || alive {
			t.Errorf("machine %s is left: %v", id, err)
		}
	}
}

// A test that has failed leaves its machines to the rig.
func TestEntriesAreUndone(t *testing.T) {
	r := newRig(t)
	d := r.startDaemon()
	c := r.serves(d)
	tmpl := r.add(c, r.template())
	r.warm(c, tmpl.Name, 2)
	d.kill()
	waiting := r.recorded()
	if left := r.undoEntries(); len(left) != 2 || len(waiting) != 2 {
		t.Errorf("entries %q of machines %v were undone, want 2", left, waiting)
	}
	for _, id := range waiting {
		if alive, err := id.Alive(); err != nil || alive {
			t.Errorf("machine %s is left: %v", id, err)
		}
	}
	if left := r.undoEntries(); len(left) != 0 {
		t.Errorf("entries %q have something to undo twice", left)
	}
}

// largest is the largest file in a directory.
func largest(t *testing.T, dir string) (path string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var size int64 = -1
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		if info.Size() > size {
			path, size = filepath.Join(dir, e.Name()), info.Size()
		}
	}
	return path
}

// recorded are the machines in the daemon's records.
func (r *rig) recorded() (ids []proc.ID) {
	r.Helper()
	records, err := filepath.Glob(filepath.Join(options(r.dir).State, entriesDir, "*", entryName))
	if err != nil {
		r.Fatal(err)
	}
	for _, path := range records {
		var rec record
		if err := readJSON(path, &rec); err != nil {
			r.Fatal(err)
		}
		if rec.Machine != nil {
			ids = append(ids, rec.Machine.Process)
		}
	}
	return ids
}

// claimReal claims a machine, has its agent answer, and destroys it.
func (r *rig) claimReal(c *client.Client, tmpl *poolv1.Template) *client.Claimed {
	r.Helper()
	book, err := receipt.Open(filepath.Join(r.TempDir(), "receipts"))
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := book.UndoAll(ctx); err != nil {
			r.Error(err)
		}
	})
	m, err := c.Claim(r.context(), client.Want{Shape: tmpl.Shape}, host.Backend(), book)
	if err != nil {
		r.Fatal(err)
	}
	if _, err := Prove(r.context(), m.Machine); err != nil {
		r.Error(err)
	}
	if err := m.Destroy(r.context()); err != nil {
		r.Error(err)
	}
	if book.Len() > 0 {
		r.Errorf("%d receipts are left", book.Len())
	}
	return m
}
