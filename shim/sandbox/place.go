package sandbox

import (
	"context"
	"fmt"
	"strconv"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/bundle"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/config"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/sizing"
)

// place is what of a machine depends on who it is for.
type place struct {
	// config is the request's, with the machine's size and kernel arguments.
	config config.Config
	// cgroup is linux.cgroupsPath on the host, empty for the shim's own.
	cgroup string
	// network is what network the containers are to have.
	network networkRequest
}

// placeOf is that of a machine whose first container has this spec, as the host
// has written it.
func (s *Sandbox) placeOf(ctx context.Context, spec *specs.Spec, cfg config.Config) (place, error) {
	r, err := sizing.FromSpec(spec)
	if err != nil {
		return place{}, err
	}
	if cfg, err = s.sized(ctx, r, cfg); err != nil {
		return place{}, err
	}
	p := place{config: cfg, network: networkFor(spec, cfg.Network)}
	if spec.Linux != nil {
		p.cgroup = spec.Linux.CgroupsPath
	}
	return p, nil
}

// sized is cfg with the machine that r asks for on this host. A quota ends at what
// the backend can do, as it promises nothing; a number that somebody has written
// down is for the backend to refuse.
func (s *Sandbox) sized(ctx context.Context, r sizing.Request, cfg config.Config) (config.Config, error) {
	host, err := sizing.ThisHost()
	if err != nil {
		return cfg, err
	}
	if r.CPUQuota > 0 {
		caps, err := s.backend.Capabilities(ctx)
		if err != nil {
			return cfg, err
		}
		host.CPUs = min(host.CPUs, caps.MaxVCPUs)
	}
	if cfg.Machine, err = sizing.For(r, cfg.Machine, host); err != nil {
		return cfg, fmt.Errorf("size of the machine: %w", err)
	}
	if mode, ok := r.Annotations[bundle.AnnotationPool]; ok {
		if err := cfg.Pool.Mode.UnmarshalText([]byte(mode)); err != nil {
			return cfg, fmt.Errorf("annotation %s: %w: %w", bundle.AnnotationPool, err, errdefs.ErrInvalidArgument)
		}
	}
	if name, ok := r.Annotations[bundle.AnnotationNetworkPolicy]; ok {
		cfg.Network.Policy = name
	}
	if value, ok := r.Annotations[bundle.AnnotationCheckpoint]; ok {
		if cfg.Machine.Checkpoint, err = strconv.ParseBool(value); err != nil {
			return cfg, fmt.Errorf("annotation %s: %q: want true or false: %w", bundle.AnnotationCheckpoint, value, errdefs.ErrInvalidArgument)
		}
	}
	return cfg, nil
}
