package sandbox

import (
	"context"
	"testing"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/stdio"
)

func (b *bed) wantStatus(c *Container, execID string, want task.Status) {
	b.t.Helper()
	if got, _, err := c.Status(execID); got != want || err != nil {
		b.t.Errorf("status of %q is %v, %v; want %v", execID, got, err, want)
	}
}

func TestPauseAndResume(t *testing.T) {
	b := newBed(t)
	c := b.running("c1")
	for _, x := range []string{"x1", "ended"} {
		b.exec(c, x, stdio.Config{})
		must(t, c.Start(b.within(), x))
	}
	b.agent().exit("c1", "ended", 3)
	b.wantExit(b.wait(c, "ended"), 3)

	b.agent().on("task.Pause", func(context.Context) error {
		b.wantStatus(c, "", task.Status_PAUSING)
		b.wantStatus(c, "x1", task.Status_PAUSING)
		return nil
	})
	must(t, c.Pause(b.within()))
	b.wantStatus(c, "", task.Status_PAUSED)
	b.wantStatus(c, "x1", task.Status_PAUSED)
	b.wantStatus(c, "ended", task.Status_STOPPED)
	must(t, c.Resume(b.within()))
	b.wantStatus(c, "", task.Status_RUNNING)
	b.wantStatus(c, "x1", task.Status_RUNNING)

	must(t, c.Pause(b.within()))
	b.agent().exit("c1", "x1", exitStatusKilled)
	b.agent().exit("c1", "", exitStatusKilled)
	b.wantExit(b.wait(c, ""), exitStatusKilled)
	b.wantStatus(c, "", task.Status_STOPPED)
	if e, err := c.Delete(b.within(), ""); err != nil || e.Status != exitStatusKilled {
		t.Errorf("delete: %+v, %v", e, err)
	}
	b.inOrder("paused c1", "resumed c1", "paused c1", "exit c1/x1 137", "exit c1 137", "delete c1 137")
}

// TestResumeSetsTheClock before the processes run, and resumes in any case.
func TestResumeSetsTheClock(t *testing.T) {
	b := newBed(t)
	c := b.running("c1")
	agent := b.agent()
	clock := func() time.Duration {
		agent.mu.Lock()
		defer agent.mu.Unlock()
		return agent.clockAhead
	}
	agent.on("task.Resume", func(context.Context) error {
		if ahead := clock(); ahead.Abs() > time.Second {
			t.Errorf("resumed with a clock that is %v ahead", ahead)
		}
		return nil
	})
	must(t, c.Pause(b.within()))
	agent.mu.Lock()
	agent.clockAhead = -time.Hour
	agent.mu.Unlock()
	must(t, c.Resume(b.within()))

	agent.on("thaw.Clock", refusal(errdefs.ErrInternal))
	must(t, c.Pause(b.within()))
	must(t, c.Resume(b.within()))
}

func TestAPauseThatFails(t *testing.T) {
	t.Run("refused", func(t *testing.T) {
		b := newBed(t)
		c := b.running("c1")
		b.agent().on("task.Pause", refusal(errdefs.ErrFailedPrecondition))
		if err := c.Pause(b.within()); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("got %v", err)
		}
		b.wantStatus(c, "", task.Status_RUNNING)
		b.agent().on("task.Resume", refusal(errdefs.ErrUnknown))
		if err := c.Resume(b.within()); !errdefs.IsUnknown(err) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("not answered, and done all the same", func(t *testing.T) {
		b := newBed(t)
		c := b.running("c1")
		b.agent().on("task.Pause", silence)
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
		if err := c.Pause(ctx); !errdefs.IsDeadlineExceeded(err) {
			t.Errorf("got %v", err)
		}
		b.wantStatus(c, "", task.Status_RUNNING)
		b.agent().emit(&apievents.TaskPaused{ContainerID: "c1"})
		b.published("paused c1")
		b.eventually("paused", func() bool { s, _, _ := c.Status(""); return s == task.Status_PAUSED })
	})
	t.Run("overtaken by the end", func(t *testing.T) {
		b := newBed(t)
		c := b.running("c1")
		b.agent().on("task.Pause", func(ctx context.Context) error {
			b.machineNow().die(hypervisor.ExitKilled)
			return silence(ctx)
		})
		if err := c.Pause(b.within()); !errdefs.IsUnavailable(err) {
			t.Errorf("got %v", err)
		}
		b.wantExit(b.wait(c, ""), exitStatusKilled)
		b.wantStatus(c, "", task.Status_STOPPED)
	})
}

// A guest says nothing of a pause that cannot be.
func TestPauseEventsOutOfPlaceAreDropped(t *testing.T) {
	b := newBed(t)
	c := b.create(b.request("c1"))
	seen := 0
	settle := func() { // an event that is published comes after those
		seen++
		b.agent().emit(&apievents.TaskOOM{ContainerID: "c1"})
		b.eventually("seen", func() bool { return b.count("oom c1") == seen })
	}
	b.agent().emit(&apievents.TaskPaused{ContainerID: "c1"})
	settle()
	must(t, c.Start(b.within(), ""))
	b.agent().emit(&apievents.TaskResumed{ContainerID: "c1"})
	settle()
	b.agent().exit("c1", "", 1)
	b.published("exit c1 1")
	b.agent().emit(&apievents.TaskPaused{ContainerID: "c1"})
	settle()
	for _, e := range []string{"paused c1", "resumed c1"} {
		if b.count(e) != 0 {
			t.Errorf("published %q", e)
		}
	}
}
