package sandbox

import (
	"context"
	"fmt"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
)

// exitEventWait is how long a deleted process's exit event may take to come
// after the guest has said that it is gone. It is on its way by then.
const exitEventWait = 5 * time.Second

// Delete removes a stopped process, or with an empty execID the container and
// everything of it on the host and in the guest. It returns how the process
// ended. A process that still runs is errdefs.ErrFailedPrecondition.
func (c *Container) Delete(ctx context.Context, execID string) (Exit, error) {
	p, err := c.process(execID)
	if err != nil {
		return Exit{}, err
	}
	if err := c.deleteInGuest(ctx, p); err != nil {
		return Exit{}, err
	}
	p.streams().WaitDrained(ctx, deleteDrainIdle)
	c.closeStreams(ctx, p)
	if execID == "" {
		c.endExecs(ctx)
	}
	e, err := c.lastWords(ctx, p)
	if err != nil {
		return Exit{}, err
	}
	if execID != "" {
		c.removeProcess(p)
		return e, nil
	}

	if err := c.remove(ctx); err != nil {
		return Exit{}, err
	}
	// Of two Deletes at the same time, one is the end.
	if c.sandbox.forget(c) {
		c.sandbox.events.send(c.deleteEvent(e))
	}
	return e, nil
}

// lastWords returns how a process ended. Its streams are closed, so nothing
// holds that back for long.
func (c *Container) lastWords(ctx context.Context, p *process) (Exit, error) {
	ctx, cancel := context.WithTimeout(ctx, exitEventWait)
	defer cancel()
	e, err := p.wait(ctx)
	if err != nil {
		return Exit{}, fmt.Errorf("delete %s: %w", c.ID, err)
	}
	return e, nil
}

// endExecs ends what clients have left behind in a container whose init is
// gone. The guest has reported every exit before init's; where it has not, the
// kernel has killed the process with init.
func (c *Container) endExecs(ctx context.Context) {
	execs := c.execs()
	c.closeStreams(ctx, execs...)
	for _, x := range execs {
		c.processEnded(x, Exit{Status: exitStatusKilled, At: time.Now()})
	}
}

// deleteInGuest has the guest forget the process and waits for its exit to be
// public. In a machine that is gone there is nothing to forget.
func (c *Container) deleteInGuest(ctx context.Context, p *process) error {
	var resp *taskapi.DeleteResponse
	err := c.call(ctx, "delete", func(ctx context.Context) (err error) {
		resp, err = c.vm.agent.task.Delete(ctx, &taskapi.DeleteRequest{ID: c.guestID, ExecID: p.execID})
		return err
	})
	switch {
	case errdefs.IsNotFound(err) && p.isExited(), err != nil && c.machineEnded():
		// An earlier Delete got this far, or the machine died.
	case err != nil:
		return err
	}
	if p.execID == "" || p.everStarted() {
		ctx, cancel := context.WithTimeout(ctx, exitEventWait)
		defer cancel()
		if _, err := p.wait(ctx); err == nil {
			return nil
		}
	}
	// A process deleted before it was started ends without an event. For one
	// whose output is still on its way this changes nothing.
	e := Exit{Status: exitStatusKilled, At: time.Now()}
	if resp != nil {
		e = Exit{Status: resp.ExitStatus, At: resp.ExitedAt.AsTime()}
	}
	p.endUnpublished(e)
	return nil
}

func (c *Container) machineEnded() bool {
	select {
	case <-c.vm.Done():
		return true
	default:
		return false
	}
}

// remove takes the container off both sides: the guest writes back and
// unmounts first, then the host stops serving, then unmounts, and tells the
// hooks.
func (c *Container) remove(ctx context.Context) error {
	if !c.machineEnded() {
		if err := c.deleteBundle(ctx); err != nil {
			// The host's side must go all the same. What the guest had not
			// written back is lost with its machine.
			log.G(ctx).WithError(err).WithField("container", c.ID).Error("the guest did not let go of the bundle")
		}
	}
	if err := c.closeTrees(ctx); err != nil {
		return err
	}
	if err := c.unmountRootfs(ctx); err != nil {
		return err
	}
	if err := c.payHooks(ctx); err != nil {
		return err
	}
	c.vm.home.leave(ctx, c.ID)
	return nil
}
