package integration

import (
	"path/filepath"
	"testing"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/lab"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/proc"
)

// TestPausedMachine is a sandbox that is paused as a whole: its machine takes no
// processor time and gives its memory back, and goes on with all of it.
func TestPausedMachine(t *testing.T) {
	r := newRig(t, lab.RuntimeBhyve)
	config := filepath.Join(r.hostDir(), "shim.toml")
	if err := r.WriteShimConfig(config, lab.ShimConfig{Pause: "memory", MemoryDir: t.TempDir()}); err != nil {
		t.Fatal(err)
	}
	id := r.start([]string{"--runtime-config-path", config})
	const ballast = 32 << 20
	sum := r.mustOK(r.exec(id, nil, nil, nil, "/bin/sh", "-c", "head -c 33554432 /dev/urandom > /dev/shm/ballast; sha256sum /dev/shm/ballast")).Stdout
	machine, err := proc.Identify(r.findMachine(id).Pid)
	if err != nil {
		t.Fatal(err)
	}
	usage := func() proc.Usage {
		t.Helper()
		u, err := machine.Usage()
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	had := usage()
	r.must("task", "pause", id)
	if stopped, err := machine.Stopped(); err != nil || !stopped {
		t.Errorf("paused, and its machine stopped: %v, %v", stopped, err)
	}
	has := usage()
	t.Logf("RSS was %d MiB and is %d", had.RSS>>20, has.RSS>>20)
	if has.RSS+2*ballast > had.RSS {
		t.Errorf("RSS was %d MiB and is %d", had.RSS>>20, has.RSS>>20)
	}
	r.must("task", "resume", id)
	if again := r.mustOK(r.exec(id, nil, nil, nil, "sha256sum", "/dev/shm/ballast")).Stdout; again != sum {
		t.Errorf("what the workload had in memory was %q and is %q", sum, again)
	}
	r.wantClock(id, clockOff, clockOff)

	// One that is paused can be ended.
	r.must("task", "pause", id)
	r.removeContainer(id)
	if alive, err := machine.Alive(); err != nil || alive {
		t.Errorf("its machine is still there: %v", err)
	}
}
