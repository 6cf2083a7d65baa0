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
	deadline := errDeadline(ctx, c.vm.agentTimeout)
	ctx, cancel := context.WithTimeout(ctx, c.vm.agentTimeout)
	defer cancel()
	err := c.vm.gate.enter(ctx)
	if err == nil {
		err = f(ctx)
		c.vm.gate.leave()
	}
	if err == nil {
		return nil
	}
	select {
	case <-c.vm.Done():
		return fmt.Errorf("%s %s: its machine has ended: %w", what, c.ID, errdefs.ErrUnavailable)
	default:
	}
	native := errgrpc.ToNative(err)
	switch {
	case errdefs.IsDeadlineExceeded(native):
		// The guest keeps the same deadline, and may be the first to see it pass.
		return fmt.Errorf("%s %s: the agent has not finished: %w: %w", what, c.ID, deadline, native)
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return fmt.Errorf("%s %s: the agent did not answer: %w", what, c.ID, deadline)
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
// the caller's deadline, or the time that an administrator gives the agent,
// whichever comes first.
func errDeadline(ctx context.Context, agentTimeout time.Duration) error {
	if at, ok := ctx.Deadline(); ok {
		if left := max(0, time.Until(at)); left < agentTimeout {
			return fmt.Errorf("the caller's deadline, which left %s, has passed: %w", left.Round(time.Millisecond), context.DeadlineExceeded)
		}
	}
	return fmt.Errorf("agent_timeout of %s has passed: %w", agentTimeout, context.DeadlineExceeded)
}
