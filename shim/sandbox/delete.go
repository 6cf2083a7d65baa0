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
	p.streams().Close()
	if execID != "" {
		c.removeProcess(p)
		_, e := p.snapshot()
		return e, nil
	}

	if err := c.remove(ctx); err != nil {
		return Exit{}, err
	}
	_, e := p.snapshot()
	c.sandbox.events.send(c.deleteEvent(e))
	return e, nil
}

// deleteInGuest has the guest forget the process and waits for its exit to be
// public. In a machine that is gone there is nothing to forget.
func (c *Container) deleteInGuest(ctx context.Context, p *process) error {
	var resp *taskapi.DeleteResponse
	err := c.call(ctx, "delete", func(ctx context.Context) (err error) {
		resp, err = c.vm.agent.task.Delete(ctx, &taskapi.DeleteRequest{ID: c.ID, ExecID: p.execID})
		return err
	})
	switch {
	case errdefs.IsNotFound(err) && (p.isExited() || c.machineEnded()):
		// An earlier Delete got this far, or the machine died.
	case err != nil:
		return err
	}
	if p.execID != "" && !p.everStarted() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, exitEventWait)
	defer cancel()
	if _, err := p.wait(ctx); err == nil {
		return nil
	}
	// A container deleted before it was started ends without an event.
	if resp == nil {
		return fmt.Errorf("delete %s: its exit is unknown: %w", c.ID, errdefs.ErrUnavailable)
	}
	p.exitSeen.Do(func() {
		p.finish(Exit{Status: resp.ExitStatus, At: resp.ExitedAt.AsTime()})
		close(p.published)
	})
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
// unmounts first, then the host stops serving, then unmounts.
func (c *Container) remove(ctx context.Context) error {
	if !c.machineEnded() {
		if err := c.deleteBundle(ctx); err != nil {
			// The host's side must go all the same. What the guest had not
			// written back is lost with its machine.
			log.G(ctx).WithError(err).WithField("container", c.ID).Error("the guest did not let go of the bundle")
		}
	}
	if err := c.closeShares(); err != nil {
		return err
	}
	if err := c.unmountRootfs(ctx); err != nil {
		return err
	}
	c.sandbox.forget(c)
	return nil
}
