//go:build linux

package qemu

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor/internal/checkpoint"
	"github.com/containerd/errdefs"
)

// A machine that nobody has meant to save is saved, and runs on; so does what is
// made of it.
func TestSnapshot(t *testing.T) {
	b := boot(t)
	bootID := thawed(t, b).BootID
	dir := t.TempDir()
	full := t.TempDir()
	if err := os.Symlink("/dev/full", filepath.Join(full, stateName)); err != nil {
		t.Fatal(err)
	}
	m := b.Machine.(hypervisor.Snapshotter)
	if err := m.Snapshot(testContext(t), full); err == nil {
		t.Error("saved to a full disk")
	}
	greet(t, b.system)
	if is, err := checkpoint.Exists(full); is || err != nil {
		t.Errorf("what could not be saved is there: %v", err)
	}

	began := time.Now()
	if err := m.Snapshot(testContext(t), dir); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(statePath(dir))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d MiB in %v", info.Size()>>20, time.Since(began))
	greet(t, b.system)
	if err := m.Snapshot(testContext(t), dir); !errdefs.IsAlreadyExists(err) {
		t.Errorf("another one in the same place: %v", err)
	}

	cfg := b.cfg
	for range 2 {
		if p := thawed(t, restored(t, cfg, dir)); p.BootID != bootID {
			t.Error("it is another machine that was restored")
		}
	}
	if err := os.Truncate(statePath(dir), info.Size()-1); err != nil {
		t.Fatal(err)
	}
	cfg.Dir = t.TempDir()
	if _, err := New().Restore(testContext(t), cfg, dir, testBook(t)); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("restored what was cut short: %v", err)
	}
}
