//go:build linux

package qemu

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	"github.com/containerd/errdefs"
)

// The board's own device has the last slot (hw/i386/pc_q35.c, ICH9_LPC_DEV).
func TestDisksHaveSlots(t *testing.T) {
	args := driveArgs(make([]drive, hypervisor.MaxDisks))
	if last := args[len(args)-1]; !strings.HasSuffix(last, ",addr=0x1e") {
		t.Errorf("the last disk is %s", last)
	}
}

// What the guest does with disks is package host's test.
func TestDisks(t *testing.T) {
	var disks []hypervisor.Disk
	for range hypervisor.MaxDisks {
		path := filepath.Join(t.TempDir(), "a disk, raw")
		if err := os.WriteFile(path, make([]byte, hypervisor.SectorSize), 0o600); err != nil {
			t.Fatal(err)
		}
		disks = append(disks, hypervisor.Disk{Path: path, ReadOnly: len(disks)%2 == 0})
	}
	launch := func(disks []hypervisor.Disk) (*machine, error) {
		cfg, book := guestConfig(t), testBook(t)
		cfg.Disks = disks
		// With descriptors before theirs.
		cfg.NIC, cfg.MemoryDir = &hypervisor.NIC{MAC: []byte{2, 0, 0, 0, 0, 7}}, t.TempDir()
		m, err := New().Launch(testContext(t), cfg, book)
		if err != nil {
			return nil, err
		}
		t.Cleanup(func() { destroy(t, m, cfg, book) })
		return m.(*machine), nil
	}
	first, err := launch(disks)
	if err != nil {
		t.Fatal(err)
	}
	wantEmptyRoot(t, first.Pid())
	var drives []struct {
		Inserted struct {
			Node     string `json:"node-name"`
			ReadOnly bool   `json:"ro"`
		} `json:"inserted"`
	}
	if err := first.execute(testContext(t), "query-block", nil, &drives); err != nil {
		t.Fatal(err)
	}
	if len(drives) != len(disks) {
		t.Errorf("%d disks, want %d", len(drives), len(disks))
	}
	for i, d := range drives {
		if d.Inserted.ReadOnly != disks[i].ReadOnly {
			t.Errorf("%s: read-only is %v", d.Inserted.Node, d.Inserted.ReadOnly)
		}
	}

	var launchError *hypervisor.LaunchError
	if _, err := launch(disks[1:2]); !errors.As(err, &launchError) || !strings.Contains(err.Error(), "lock") {
		t.Errorf("a disk that another machine writes to: %v", err)
	}
	if _, err := launch(disks[:1]); err != nil {
		t.Errorf("a disk that another machine reads: %v", err)
	}

	for name, save := range map[string]func() error{
		"checkpoint": func() error { return first.Checkpoint(testContext(t)) },
		"snapshot":   func() error { return first.Snapshot(testContext(t), t.TempDir()) },
		"restore": func() error {
			_, err := New().Restore(testContext(t), first.cfg, t.TempDir(), testBook(t))
			return err
		},
	} {
		if err := save(); !errdefs.IsNotImplemented(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := first.running(testContext(t)); err != nil {
		t.Errorf("after what was refused: %v", err)
	}
}
