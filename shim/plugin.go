package shim

import (
	"context"
	"time"

	"github.com/containerd/containerd/v2/pkg/shutdown"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/log"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor/host"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/sandbox"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/task"
)

// closeTimeout bounds the end of a shim that is told to go by a signal:
// pkg/shim leaves 5 s.
const closeTimeout = 4 * time.Second

func init() {
	registry.Register(&plugin.Registration{
		Type:     plugins.TTRPCPlugin,
		ID:       "task",
		Requires: []plugin.Type{plugins.InternalPlugin},
		InitFn: func(ic *plugin.InitContext) (any, error) {
			p, err := newPublisher()
			if err != nil {
				return nil, err
			}
			sd, err := ic.GetByID(plugins.InternalPlugin, "shutdown")
			if err != nil {
				return nil, err
			}
			return newService(ic.Context, p, sd.(shutdown.Service)), nil
		},
	})
}

// newService puts the shim's parts together. Its end, asked for by Shutdown or
// by a signal, is the end of the sandbox.
func newService(ctx context.Context, publisher *publisher, sd shutdown.Service) *task.Service {
	s := sandbox.New(ctx, host.Backend(), publisher, sandbox.DefaultStateDir)
	sd.RegisterCallback(func(ctx context.Context) error {
		defer publisher.Close()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
		defer cancel()
		err := s.Close(ctx)
		if err != nil {
			log.G(ctx).WithError(err).Error("sandbox was not closed cleanly")
		}
		return err
	})
	return task.New(s, sd.Shutdown)
}
