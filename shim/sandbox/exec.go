package sandbox

import (
	"context"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/typeurl/v2"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/bundle"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/stdio"
)

// Exec adds a process to a running container. It is made by Start. spec is an
// OCI process in JSON.
func (c *Container) Exec(ctx context.Context, execID string, cfg stdio.Config, spec typeurl.Any) (err error) {
	if err := cfg.Validate(); err != nil {
		return err
	}
	guestSpec, err := bundle.TranslateProcess(spec)
	if err != nil {
		return err
	}
	p := newProcess(execID, cfg)
	if err := c.addProcess(p); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			c.removeProcess(p)
		}
	}()
	streams, err := c.openStdio(ctx, execID, cfg)
	if err != nil {
		return err
	}
	p.setIO(streams)
	defer func() {
		if err != nil {
			c.closeStreams(context.WithoutCancel(ctx), p)
		}
	}()

	g := streams.Guest()
	return c.call(ctx, "exec in", func(ctx context.Context) error {
		_, err := c.vm.agent.task.Exec(ctx, &taskapi.ExecProcessRequest{
			ID:       c.guestID,
			ExecID:   execID,
			Terminal: g.Terminal,
			Stdin:    g.Stdin,
			Stdout:   g.Stdout,
			Stderr:   g.Stderr,
			Spec:     guestSpec,
		})
		return err
	})
}
