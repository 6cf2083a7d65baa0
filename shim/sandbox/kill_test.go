package sandbox

import (
	"errors"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
)

// A guest that says that it has killed a container, or that it is gone, has to
// say how it ended.
func TestAKilledContainerWhoseExitTheGuestKeeps(t *testing.T) {
	for name, answer := range map[string]error{"killed": nil, "gone": errdefs.ErrNotFound} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			b.killUnreported = 50 * time.Millisecond
			c := b.running("c1")
			if answer != nil {
				b.agent().on("task.Kill", refusal(answer))
			}
			if err := c.Kill(b.within(), "", 9, false); !errors.Is(err, answer) {
				t.Errorf("kill: got %v, want %v", err, answer)
			}
			b.wantExit(b.wait(c, ""), exitStatusKilled)
			if !b.machineNow().wasDestroyed() {
				t.Error("the machine lives on")
			}
		})
	}
}

func TestKillInADeadMachine(t *testing.T) {
	b := newBed(t)
	c := b.running("c1")
	b.machineNow().die(hypervisor.ExitKilled)
	b.wantExit(b.wait(c, ""), exitStatusKilled)
	for _, signal := range []uint32{9, 15} {
		if err := c.Kill(b.within(), "", signal, true); !errdefs.IsNotFound(err) {
			t.Errorf("signal %d: got %v, want NotFound", signal, err)
		}
	}
}
