package sandbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
)

const (
	// killUnanswered is how long a SIGKILL for a whole container may go
	// unanswered before the machine is ended instead: a guest cannot refuse to
	// die.
	killUnanswered = 10 * time.Second
	// killUnreported is how long, after that answer, the exit may take to be
	// reported. A process that waits for a file of the host's dies when it has
	// it, so this is more than a slow disk takes.
	killUnreported = 30 * time.Second
	// killHeld is how long a signal may wait while its container is saved: longer
	// than any save takes, with all that follows one that fails.
	killHeld = saveTimeout + 2*time.Minute
)

// signalKill is SIGKILL in the guest, whatever its number on this host.
const signalKill = 9

// Kill sends a signal to a process, or with all to every process of the
// container. A process that has ended, with its machine too, is
// errdefs.ErrNotFound.
//
// A SIGKILL for init is final: if the guest does not answer, or does not report
// the exit, its machine is ended. Any signal to a container that is being saved
// waits for the end of that, as one to frozen processes does.
func (c *Container) Kill(ctx context.Context, execID string, signal uint32, all bool) error {
	p, err := c.process(execID)
	if err != nil {
		return err
	}
	final := signal == signalKill && execID == ""
	err = c.signal(ctx, p, &taskapi.KillRequest{ID: c.guestID, ExecID: execID, Signal: signal, All: all}, final)
	switch {
	case err == nil:
		return nil
	case c.machineEnded():
		return fmt.Errorf("kill %s: process already finished with its machine: %w", c.ID, errdefs.ErrNotFound)
	// A caller who has no patience left says nothing about the guest.
	case errors.Is(err, errUnanswered) && ctx.Err() == nil:
		log.G(ctx).WithField("container", c.ID).WithError(err).Warn("the guest does not answer a SIGKILL: ending its machine")
		return c.vm.destroy(ctx)
	}
	return err
}

// errUnanswered is in the error of a final signal that the guest has had time to
// answer.
var errUnanswered = errors.New("a SIGKILL has to be answered")

// signal has the guest deliver a signal, once the machine is not being saved.
func (c *Container) signal(ctx context.Context, p *process, r *taskapi.KillRequest, final bool) error {
	const what = "kill"
	held, cancel := context.WithTimeout(ctx, killHeld)
	defer cancel()
	if err := c.enter(held, what, errDeadline(ctx, "the limit", killHeld)); err != nil {
		return err
	}
	defer c.vm.gate.leave()
	// The guest's time begins here.
	name, patience := "agent_timeout", c.vm.agentTimeout
	if final {
		name, patience = "the limit", min(patience, c.sandbox.killUnanswered)
	}
	limit := errDeadline(ctx, name, patience)
	ctx, cancel = context.WithTimeout(ctx, patience)
	defer cancel()
	err := c.ask(ctx, what, limit, func(ctx context.Context) error {
		_, err := c.vm.agent.task.Kill(ctx, r)
		return err
	})
	switch {
	case final && (err == nil || errdefs.IsNotFound(err)):
		// Gone, says the guest; so its exit is due.
		c.expectExit(p, c.sandbox.killUnreported)
	case final && errdefs.IsDeadlineExceeded(err):
		err = fmt.Errorf("%w: %w", errUnanswered, err)
	}
	return err
}

// expectExit ends the machine unless the exit of p is reported in time. It does
// not wait for that.
func (c *Container) expectExit(p *process, limit time.Duration) {
	p.killOnce.Do(func() {
		p.killed.Store(true)
		go func() {
			timer := time.NewTimer(limit)
			defer timer.Stop()
			select {
			case <-p.reported:
				return
			case <-c.vm.Done():
				return
			case <-timer.C:
			}
			l := log.G(c.sandbox.ctx).WithField("container", c.ID)
			l.Warnf("the guest has not reported the exit of a killed container for %s: ending its machine", limit)
			if err := c.vm.destroy(c.sandbox.ctx); err != nil {
				l.WithError(err).Error("machine could not be destroyed")
			}
		}()
	})
}
