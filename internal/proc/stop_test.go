package proc

import (
	"context"
	"errors"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func TestStopAndContinue(t *testing.T) {
	_, id := start(t, "sleep", "1000")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for range 2 {
		// Twice: stopping what is stopped succeeds, and so does the other.
		for range 2 {
			if err := id.Stop(ctx); err != nil {
				t.Fatal(err)
			}
		}
		if stopped, err := id.Stopped(); err != nil || !stopped {
			t.Errorf("stopped %v, %v", stopped, err)
		}
		for range 2 {
			if err := id.Continue(ctx); err != nil {
				t.Fatal(err)
			}
		}
		if stopped, err := id.Stopped(); err != nil || stopped {
			t.Errorf("stopped after continue: %v, %v", stopped, err)
		}
	}
}

func TestStopThatIsGivenUp(t *testing.T) {
	_, id := start(t, "sleep", "1000")
	gaveUp := errors.New("gave up")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(gaveUp)
	never := func() (bool, error) { return false, nil }
	if err := id.stop(ctx, never); !errors.Is(err, gaveUp) {
		t.Fatalf("got %v", err)
	}
	patient, cancelPatient := context.WithTimeout(t.Context(), patience)
	defer cancelPatient()
	if err := id.await(patient, id.running); err != nil {
		t.Errorf("it does not run again: %v", err)
	}
}

func TestStopWhatIsGone(t *testing.T) {
	_, id := start(t, "sleep", "1000")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := id.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	// What is stopped can be killed.
	if err := id.Kill(ctx); err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{"stop": id.Stop(ctx), "continue": id.Continue(ctx)} {
		if !errdefs.IsNotFound(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, other := start(t, "sleep", "1000")
	earlier := ID{Pid: other.Pid, Start: other.Start - 1}
	if err := earlier.Stop(ctx); !errdefs.IsNotFound(err) {
		t.Errorf("an earlier process: %v", err)
	}
	if err := other.Signal(unix.Signal(0)); err != nil {
		t.Error(err)
	}
	if running, err := other.running(); err != nil || !running {
		t.Errorf("what has the pid of another runs: %v, %v", running, err)
	}
}
