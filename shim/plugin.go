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
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/sandboxapi"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/task"
)

// closeTimeout bounds the end of a shim that is told to go by a signal:
// pkg/shim leaves 5 s.
const closeTimeout = 4 * time.Second

// sandboxPlugin is the type of the sandbox that both services are about.
const sandboxPlugin plugin.Type = "io.containerd.bhyve.sandbox.v1"

func init() {
	registry.Register(&plugin.Registration{
		Type:     sandboxPlugin,
		ID:       "sandbox",
		Requires: []plugin.Type{plugins.InternalPlugin},
		InitFn: func(ic *plugin.InitContext) (any, error) {
			sd, err := shutdownOf(ic)
			if err != nil {
				return nil, err
			}
			p, err := newPublisher()
			if err != nil {
				return nil, err
			}
			return newSandbox(ic.Context, p, sd), nil
		},
	})
	registerService("task", func(s *sandbox.Sandbox, exit func()) any { return task.New(s, exit) })
	registerService("sandbox", func(s *sandbox.Sandbox, exit func()) any { return sandboxapi.New(s, exit) })
}

func shutdownOf(ic *plugin.InitContext) (shutdown.Service, error) {
	sd, err := ic.GetByID(plugins.InternalPlugin, "shutdown")
	if err != nil {
		return nil, err
	}
	return sd.(shutdown.Service), nil
}

// newSandbox makes the shim's sandbox. The end of the shim, asked for by a
// service or by a signal, is its end.
func newSandbox(ctx context.Context, publisher *publisher, sd shutdown.Service) *sandbox.Sandbox {
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
	return s
}

// registerService registers one of the services that pkg/shim serves over ttrpc.
func registerService(id string, make func(s *sandbox.Sandbox, exit func()) any) {
	registry.Register(&plugin.Registration{
		Type:     plugins.TTRPCPlugin,
		ID:       id,
		Requires: []plugin.Type{plugins.InternalPlugin, sandboxPlugin},
		InitFn: func(ic *plugin.InitContext) (any, error) {
			sd, err := shutdownOf(ic)
			if err != nil {
				return nil, err
			}
			s, err := ic.GetSingle(sandboxPlugin)
			if err != nil {
				return nil, err
			}
			return make(s.(*sandbox.Sandbox), sd.Shutdown), nil
		},
	})
}
