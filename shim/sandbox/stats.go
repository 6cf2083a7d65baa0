package sandbox

import (
	"context"
	"fmt"

	cgroup2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
)

// Stats returns what the container uses in the guest: the metrics of its
// control group, which is version 2 on every host.
func (c *Container) Stats(ctx context.Context) (*cgroup2.Metrics, error) {
	var resp *taskapi.StatsResponse
	err := c.call(ctx, "measure", func(ctx context.Context) (err error) {
		resp, err = c.vm.agent.task.Stats(ctx, &taskapi.StatsRequest{ID: c.guestID})
		return err
	})
	if err != nil {
		return nil, err
	}
	metrics, err := metricsIn(resp.Stats)
	if err != nil {
		return nil, fmt.Errorf("measure %s: %w", c.ID, err)
	}
	return metrics, nil
}

// metricsIn decodes what a guest has answered, so that nothing but metrics passes
// for metrics. Anything else is errdefs.ErrDataLoss.
func metricsIn(answer *anypb.Any) (*cgroup2.Metrics, error) {
	metrics := &cgroup2.Metrics{}
	if err := typeurl.UnmarshalTo(answer, metrics); err != nil {
		return nil, fmt.Errorf("the guest answered with %q: %w", answer.GetTypeUrl(), errdefs.ErrDataLoss)
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

// logUsage puts what the machine has cost the host on record, at its end.
func (s *Sandbox) logUsage(ctx context.Context) {
	u, err := s.Usage(ctx)
	if err != nil {
		log.G(ctx).WithError(err).Debug("the cost of the machine is not known")
		return
	}
	log.G(ctx).WithFields(log.Fields{
		"cpu_ms":                  u.CPUNanoseconds / 1e6,
		"rss_kib":                 u.RSS / 1024,
		"pss_kib":                 u.PSS / 1024,
		"private_dirty_kib":       u.PrivateDirty / 1024,
		"guest_private_dirty_kib": u.GuestPrivateDirty / 1024,
		"vm_exits":                u.VMExits,
	}).Info("what the sandbox's machine has cost the host")
}
