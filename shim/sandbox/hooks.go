package sandbox

import (
	"context"
	"maps"
	"time"

	"github.com/containerd/log"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/hooks"
)

// hostHooks are a container's hooks that run on the host. It is written by
// Create only.
type hostHooks struct {
	specs specs.Hooks
	// state is what a hook is told, without the moment's pid and status.
	state specs.State
	// debt is the receipt of the poststop hooks, nil if there are none.
	debt *receipt.Receipt
}

// oweHooks writes the receipt of the poststop hooks. It precedes all others of
// the container: these hooks are the last thing that is undone. Nothing is due
// before runCreateHooks.
func (c *Container) oweHooks(spec *specs.Spec) error {
	if spec.Hooks == nil || len(spec.Hooks.Poststop) == 0 {
		return nil
	}
	var err error
	c.hooks.debt, err = c.book.Write(&hooks.Debt{})
	return err
}

// runCreateHooks runs the hooks that precede the container's process. The
// machine runs, and its process stands for the container's on the host.
func (c *Container) runCreateHooks(ctx context.Context, spec *specs.Spec, h specs.Hooks) error {
	c.hooks.specs = h
	c.hooks.state = specs.State{Version: spec.Version, ID: c.ID, Bundle: c.Bundle, Annotations: maps.Clone(spec.Annotations)}
	if c.hooks.debt != nil {
		debt := &hooks.Debt{Hooks: h.Poststop, State: c.hookState(specs.StateStopped)}
		if err := c.hooks.debt.Amend(debt); err != nil {
			return err
		}
	}
	state := c.hookState(specs.StateCreating)
	//lint:ignore SA1019 Prestart is deprecated and still written.
	if err := hooks.Run(ctx, c.book, hooks.Prestart, h.Prestart, state); err != nil {
		return err
	}
	return hooks.Run(ctx, c.book, hooks.CreateRuntime, h.CreateRuntime, state)
}

// hookState is the container's state as a hook is told it. A stopped container
// has no pid.
func (c *Container) hookState(status specs.ContainerState) specs.State {
	state := c.hooks.state
	state.Status = status
	if status != specs.StateStopped {
		state.Pid = c.vm.Pid()
	}
	return state
}

// hookKillTimeout bounds the end of a container whose poststart hook failed.
const hookKillTimeout = 15 * time.Second

// runPoststart runs the hooks that follow the start of the container's process.
// Their failure is its end (runtime.md, lifecycle step 9).
func (c *Container) runPoststart(ctx context.Context) error {
	err := hooks.Run(ctx, c.book, hooks.Poststart, c.hooks.specs.Poststart, c.hookState(specs.StateRunning))
	if err == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), hookKillTimeout)
	defer cancel()
	if kerr := c.Kill(ctx, "", 9, true); kerr != nil {
		log.G(ctx).WithError(kerr).WithField("container", c.ID).Error("container whose poststart hook failed was not killed")
	}
	return err
}

// payHooks runs the poststop hooks, if they are due.
func (c *Container) payHooks(ctx context.Context) error {
	if c.hooks.debt == nil {
		return nil
	}
	return c.hooks.debt.Undo(ctx)
}
