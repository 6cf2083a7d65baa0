package sandbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
)

// call makes one request to the agent in bounded time. Its error is of an
// errdefs kind and says what was asked of whom; without a machine to ask it is
// errdefs.ErrUnavailable. One that comes of a deadline says whose that was.
func (c *Container) call(ctx context.Context, what string, f func(context.Context) error) error {
	limit := errDeadline(ctx, "agent_timeout", c.vm.agentTimeout)
	ctx, cancel := context.WithTimeout(ctx, c.vm.agentTimeout)
	defer cancel()
	if err := c.enter(ctx, what, limit); err != nil {
		return err
	}
	defer c.vm.gate.leave()
	return c.ask(ctx, what, limit, f)
}

// enter waits until the machine is not being saved. Each success is undone by the
// gate's leave. limit is what to say when the deadline of ctx has passed.
func (c *Container) enter(ctx context.Context, what string, limit error) error {
	alive, release := whileAlive(ctx, c.vm.Machine)
	defer release()
	err := c.vm.gate.enter(alive)
	switch {
	case err == nil:
		return nil
	case c.machineEnded():
		return c.errEnded(what)
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		err = limit
	}
	return fmt.Errorf("%s %s: it has waited while the machine is being saved: %w", what, c.ID, err)
}

func (c *Container) errEnded(what string) error {
	return fmt.Errorf("%s %s: its machine has ended: %w", what, c.ID, errdefs.ErrUnavailable)
}

// ask is call for who has entered the gate, and bounded ctx.
func (c *Container) ask(ctx context.Context, what string, limit error, f func(context.Context) error) error {
	err := f(ctx)
	if err == nil {
		return nil
	}
	if c.machineEnded() {
		return c.errEnded(what)
	}
	native := errgrpc.ToNative(err)
	switch {
	case errdefs.IsDeadlineExceeded(native):
		// The guest keeps the same deadline, and may be the first to see it pass.
		return fmt.Errorf("%s %s: the agent has not finished: %w: %w", what, c.ID, limit, native)
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return fmt.Errorf("%s %s: the agent did not answer: %w", what, c.ID, limit)
	case ctx.Err() != nil:
		return fmt.Errorf("%s %s: the agent did not answer: %w", what, c.ID, context.Cause(ctx))
	}
	return fmt.Errorf("%s %s: %w", what, c.ID, native)
}

// agentError is the error of a request that is made past the gate. ctx is
// whileAlive's.
func (c *Container) agentError(ctx context.Context, what string, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%s %s: %w: %w", what, c.ID, err, context.Cause(ctx))
	}
	return fmt.Errorf("%s %s: %w", what, c.ID, errgrpc.ToNative(err))
}

// errDeadline is what to say when a request that is made now runs out of time:
// the caller's deadline, or the limit of that name, whichever comes first.
func errDeadline(ctx context.Context, name string, limit time.Duration) error {
	if at, ok := ctx.Deadline(); ok {
		if left := max(0, time.Until(at)); left < limit {
			return fmt.Errorf("the caller's deadline, which left %s, has passed: %w", left.Round(time.Millisecond), context.DeadlineExceeded)
		}
	}
	return fmt.Errorf("%s of %s has passed: %w", name, limit, context.DeadlineExceeded)
}
