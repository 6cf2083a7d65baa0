package sandbox

import (
	"context"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/config"
)

// rested is what became of the bed's machine since the last call.
func (b *bed) rested() []string {
	b.mu.Lock()
	m := b.vm.Machine.(*fakeMachine)
	b.mu.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	was := m.rested
	m.rested = nil
	return was
}

func (b *bed) wantRested(when string, want ...string) {
	b.t.Helper()
	if got := b.rested(); !slices.Equal(got, want) {
		b.t.Errorf("%s: %q, want %q", when, got, want)
	}
}

// A machine rests when the last of its containers has been paused, and is awake
// for whatever is asked of its guest.
func TestPausedMachineRests(t *testing.T) {
	for mode, rest := range map[config.PauseMode][]string{
		config.PauseContainers: nil, config.PauseMachine: {"park"}, config.PauseMemory: {"park", "reclaim"},
	} {
		t.Run(string(mode), func(t *testing.T) {
			b := newBed(t)
			b.cfg.Machine.Pause = mode
			one, two := b.running("c1"), b.running("c2")
			var wake []string
			if rest != nil {
				wake = []string{"unpark"}
			}
			must(t, one.Pause(b.within()))
			b.wantRested("another container runs")
			must(t, two.Pause(b.within()))
			b.wantRested("all are paused", rest...)

			b.agent().on("task.Resume", func(context.Context) error {
				b.wantRested("before the guest is asked to resume", wake...)
				return nil
			})
			must(t, two.Resume(b.within()))
			b.agent().on("task.Resume", nil)
			must(t, two.Pause(b.within()))
			b.wantRested("paused again", rest...)
			must(t, one.Kill(b.within(), "", uint32(unix.SIGTERM), false))
			b.wantRested("a signal", wake...)
			// It has ended, and is no reason to stay awake.
			b.agent().exit("c1", "", 0)
			b.wantExit(b.wait(one, ""), 0)
			must(t, two.Resume(b.within()))
			must(t, two.Pause(b.within()))
			b.wantRested("the other has ended", rest...)
		})
	}
}
