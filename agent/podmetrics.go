//go:build linux

package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/cgroups/v3/cgroup2"
	"github.com/containerd/cgroups/v3/cgroup2/stats"
	"github.com/containerd/typeurl/v2"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto"
	agentv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto/v1"
)

// Metrics implements agentv1.PodService.
func (p *pod) Metrics(context.Context, *agentv1.PodMetricsRequest) (*agentv1.PodMetricsResponse, error) {
	m, err := sandboxMetrics()
	if err != nil {
		return nil, fmt.Errorf("pod metrics: %w", err)
	}
	data, err := typeurl.MarshalAnyToProto(m)
	if err != nil {
		return nil, fmt.Errorf("pod metrics: %w", err)
	}
	return &agentv1.PodMetricsResponse{Metrics: data}, nil
}

// sandboxMetrics are those of the cgroup that all containers' are in. Before the
// first container there is none, and nothing is used.
func sandboxMetrics() (*stats.Metrics, error) {
	_, err := os.Stat(filepath.Join(cgroupRoot, agentproto.SandboxCgroup))
	if errors.Is(err, os.ErrNotExist) {
		return &stats.Metrics{CPU: &stats.CPUStat{}, Memory: &stats.MemoryStat{}, Pids: &stats.PidsStat{}}, nil
	}
	if err != nil {
		return nil, err
	}
	cg, err := cgroup2.Load(agentproto.SandboxCgroup)
	if err != nil {
		return nil, err
	}
	return cg.Stat()
}
