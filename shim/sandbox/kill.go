package sandbox

import (
	"context"
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
)

// signalKill is SIGKILL in the guest, whatever its number on this host.
const signalKill = 9

// Kill sends a signal to a process, or with all to every process of the
// container. A process that has ended, with its machine too, is
// errdefs.ErrNotFound.
//
// A SIGKILL for init is final: if the guest does not answer, or does not report
// the exit, its machine is ended.
func (c *Container) Kill(ctx context.Context, execID string, signal uint32, all bool) error {
	p, err := c.process(execID)
	if err != nil {
		return err
	}
	final := signal == signalKill && execID == ""
	caller := ctx
	if final {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, killUnanswered)
		defer cancel()
	}
	err = c.call(ctx, "kill", func(ctx context.Context) error {
		_, err := c.vm.agent.task.Kill(ctx, &taskapi.KillRequest{ID: c.guestID, ExecID: execID, Signal: signal, All: all})
		return err
	})
	if final && (err == nil || errdefs.IsNotFound(err)) {
		// Gone, says the guest; so its exit is due.
		c.expectExit(p, c.sandbox.killUnreported)
	}
	switch {
	case err == nil:
		return nil
	case c.machineEnded():
		return fmt.Errorf("kill %s: process already finished with its machine: %w", c.ID, errdefs.ErrNotFound)
	// A caller who has no patience left says nothing about the guest.
	case final && errdefs.IsDeadlineExceeded(err) && caller.Err() == nil:
		log.G(ctx).WithField("container", c.ID).WithError(err).Warn("the guest does not answer a SIGKILL: ending its machine")
		return c.vm.destroy(ctx)
	}
	return err
}

// expectExit ends the machine unless the exit of p is reported in time. It does
// not wait for that.
func (c *Container) expectExit(p *process, limit time.Duration) {
	p.killOnce.Do(func() {
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
