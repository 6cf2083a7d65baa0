package sandbox

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
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

// A signal to a container that is being saved waits for the end of that: it is no
// guest that does not answer.
func TestKillDuringSave(t *testing.T) {
	for _, signal := range []uint32{9, 15} {
		t.Run(fmt.Sprint(signal), func(t *testing.T) {
			b := newBed(t)
			b.killUnanswered = time.Millisecond
			c := b.savable("c1")
			var saved atomic.Bool
			b.agent().on("task.Kill", func(context.Context) error {
				if !saved.Load() {
					t.Error("the guest was asked while it was saved")
				}
				return nil
			})
			killed := make(chan error, 1)
			b.machineNow().snapshot = func(context.Context, string) error {
				// One who does not wait for so long.
				impatient, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
				defer cancel()
				err := c.Kill(impatient, "", signal, false)
				if !errdefs.IsDeadlineExceeded(err) || !strings.Contains(err.Error(), "being saved") {
					t.Errorf("who did not wait was told %v", err)
				}
				b.killUnanswered = patience
				go func() { killed <- c.Kill(b.within(), "", signal, false) }()
				saved.Store(true)
				return nil
			}
			must(t, c.Checkpoint(b.within(), t.TempDir(), false))
			must(t, <-killed)
			if b.machineNow().wasDestroyed() {
				t.Error("the machine was ended")
			}
		})
	}
}

// A container that was killed is not saved: its machine might end meanwhile.
func TestSaveOfTheKilled(t *testing.T) {
	b := newBed(t)
	c := b.savable("c1")
	b.machineNow().snapshot = func(context.Context, string) error { return nil }
	must(t, c.Kill(b.within(), "", 9, false))
	if err := c.Checkpoint(b.within(), t.TempDir(), false); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("got %v, want failed precondition", err)
	}
}
