package sandbox

import (
	"context"
	"fmt"
	"slices"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// targetPIDNS is the PID namespace, in the guest, of the container whose
// processes this one is to see: CRI's namespace mode TARGET. It is empty for a
// container that asks for none such.
//
// A spec says it by /proc/PID/ns/pid, and all containers of a machine have one
// pid on the host. So the target can be told only where there is one container to
// choose, and is errdefs.ErrNotImplemented otherwise.
func (s *Sandbox) targetPIDNS(ctx context.Context, spec *specs.Spec) (string, error) {
	asked := spec.Linux != nil && slices.ContainsFunc(spec.Linux.Namespaces, func(ns specs.LinuxNamespace) bool {
		return ns.Type == specs.PIDNamespace && ns.Path != ""
	})
	s.mu.Lock()
	target := asked && s.declared != nil && s.declared.pod.TargetPID
	ready := s.readyContainers()
	s.mu.Unlock()
	if !target {
		return "", nil
	}
	running := slices.DeleteFunc(ready, func(c *Container) bool {
		status, _, err := c.Status("")
		return err != nil || status != task.Status_RUNNING && status != task.Status_PAUSED
	})
	if len(running) != 1 {
		return "", fmt.Errorf("the PID namespace of one of %d running containers: %w", len(running), errdefs.ErrNotImplemented)
	}
	c := running[0]
	var pid uint32
	err := c.call(ctx, "look for the first process of", func(ctx context.Context) error {
		resp, err := c.vm.agent.task.State(ctx, &taskapi.StateRequest{ID: c.guestID})
		pid = resp.GetPid()
		return err
	})
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("/proc/%d/ns/pid", pid), nil
}
