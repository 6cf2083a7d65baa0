package sandbox

import (
	"context"
	"fmt"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
)

// pauseEventWait is how long the event of a pause or resume may take to come
// after the guest has said that it is done. It is on its way by then.
const pauseEventWait = 5 * time.Second

// Pause freezes all processes of the container, by the guest's freezer. When it
// returns, the container is paused and the event is queued for containerd. Its
// files are on the host: clients pause a container to look at them.
//
// Other containers of the sandbox are not concerned. If all are paused, the machine
// may rest too, see doze.
func (c *Container) Pause(ctx context.Context) error {
	p, err := c.process("")
	if err != nil {
		return err
	}
	// Only for those who look meanwhile: whether it may be paused, the guest
	// knows.
	p.move(task.Status_RUNNING, task.Status_PAUSING)
	err = c.call(ctx, "pause", func(ctx context.Context) error {
		_, err := c.vm.agent.task.Pause(ctx, &taskapi.PauseRequest{ID: c.guestID})
		return err
	})
	if err != nil {
		p.move(task.Status_PAUSING, task.Status_RUNNING)
		return err
	}
	if err := c.awaitStatus(ctx, p, "pause", task.Status_PAUSED); err != nil {
		return err
	}
	c.writeBack()
	c.sandbox.restIfPaused(ctx, c.vm)
	return nil
}

// Resume lets the processes of a paused container run on. When it returns, the
// event is queued for containerd.
//
// Meanwhile the host, or whoever looks after it, may have stopped the machine, and
// its clock with it: the processes are given the right time.
func (c *Container) Resume(ctx context.Context) error {
	p, err := c.process("")
	if err != nil {
		return err
	}
	err = c.call(ctx, "resume", func(ctx context.Context) error {
		c.vm.agent.setClock(ctx)
		_, err := c.vm.agent.task.Resume(ctx, &taskapi.ResumeRequest{ID: c.guestID})
		return err
	})
	if err != nil {
		return err
	}
	return c.awaitStatus(ctx, p, "resume", task.Status_RUNNING)
}

// awaitStatus waits for the event that goes with an answer of the guest's. The
// events alone move a container into and out of the pause: they have an order,
// and an answer that is late would undo what came after it.
func (c *Container) awaitStatus(ctx context.Context, p *process, what string, want task.Status) error {
	ctx, cancel := context.WithTimeoutCause(ctx, pauseEventWait,
		fmt.Errorf("no event of it within %s: %w", pauseEventWait, context.DeadlineExceeded))
	defer cancel()
	got, err := p.await(ctx, want)
	switch {
	case err != nil:
		return fmt.Errorf("%s %s: %w", what, c.ID, err)
	case got == task.Status_STOPPED && want != got:
		return fmt.Errorf("%s %s: it ended meanwhile: %w", what, c.ID, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// pauseEvent is an event of the guest's that the container whose init is p is
// paused, or runs again. containerd's is queued before Pause or Resume return.
func (s *Sandbox) pauseEvent(id string, p *process, now task.Status) error {
	was, _ := p.snapshot()
	var e any
	switch {
	case now == task.Status_PAUSED && (was == task.Status_RUNNING || was == task.Status_PAUSING):
		e = &apievents.TaskPaused{ContainerID: id}
	case now == task.Status_RUNNING && was == task.Status_PAUSED:
		e = &apievents.TaskResumed{ContainerID: id}
	default:
		return fmt.Errorf("the container is %s", was)
	}
	s.events.send(e)
	p.move(was, now)
	return nil
}
