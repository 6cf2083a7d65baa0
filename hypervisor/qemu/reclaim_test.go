//go:build linux

package qemu

import (
	"os"
	"testing"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	"github.com/containerd/errdefs"
)

// A machine that waits has its memory on disk, and goes on with it.
func TestReclaim(t *testing.T) {
	dir := t.TempDir()
	b := boot(t, func(c *hypervisor.Config) { c.MemoryDir = dir })
	m := b.Machine.(*machine)
	if names, err := os.ReadDir(dir); err != nil || len(names) > 0 {
		t.Errorf("its memory has a name: %v, %v", names, err)
	}
	if err := m.Reclaim(testContext(t)); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("reclaim from one that runs: %v", err)
	}
	if err := m.Park(testContext(t)); err != nil {
		t.Fatal(err)
	}
	usage := func() hypervisor.Usage {
		t.Helper()
		u, err := m.Usage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	had := usage()
	if err := m.Reclaim(testContext(t)); err != nil {
		t.Fatal(err)
	}
	has := usage()
	const mib = 1 << 20
	t.Logf("RSS was %d MiB and is %d", had.RSS/mib, has.RSS/mib)
	if has.RSS+32*mib > had.RSS {
		t.Errorf("RSS was %d MiB and is %d", had.RSS/mib, has.RSS/mib)
	}
	if stopped, err := m.Process.ID().Stopped(); err != nil || !stopped {
		t.Errorf("still parked: %v, %v", stopped, err)
	}
	if err := m.Unpark(testContext(t)); err != nil {
		t.Fatal(err)
	}
	greet(t, b.system)
}
