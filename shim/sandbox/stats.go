package sandbox

import (
	"context"
	"fmt"

	cgroup2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
)

// Stats returns what the container uses in the guest: the metrics of its
// control group, which is version 2 on every host.
func (c *Container) Stats(ctx context.Context) (*cgroup2.Metrics, error) {
	var resp *taskapi.StatsResponse
	err := c.call(ctx, "measure", func(ctx context.Context) (err error) {
		resp, err = c.vm.agent.task.Stats(ctx, &taskapi.StatsRequest{ID: c.ID})
		return err
	})
	if err != nil {
		return nil, err
	}
	// Decoded here, so that nothing but metrics passes for metrics.
	metrics := &cgroup2.Metrics{}
	if err := typeurl.UnmarshalTo(resp.Stats, metrics); err != nil {
		return nil, fmt.Errorf("measure %s: the guest answered with %q: %w", c.ID, resp.Stats.GetTypeUrl(), errdefs.ErrDataLoss)
	}
	return metrics, nil
}

// Usage is what the sandbox's machine takes from the host, its containers and
// the guest's own kernel together. errdefs.ErrNotImplemented where the machine
// cannot tell, errdefs.ErrUnavailable without a machine.
func (s *Sandbox) Usage(ctx context.Context) (hypervisor.Usage, error) {
	s.mu.Lock()
	v := s.vm
	s.mu.Unlock()
	if v == nil {
		return hypervisor.Usage{}, fmt.Errorf("measure the machine: there is none: %w", errdefs.ErrUnavailable)
	}
	m, ok := v.Machine.(hypervisor.Measurer)
	if !ok {
		return hypervisor.Usage{}, fmt.Errorf("measure machine %s: %w", v.ID(), errdefs.ErrNotImplemented)
	}
	u, err := m.Usage(ctx)
	if err != nil {
		return hypervisor.Usage{}, fmt.Errorf("measure machine %s: %w", v.ID(), err)
	}
	return u, nil
}
