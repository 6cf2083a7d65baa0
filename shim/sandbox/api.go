package sandbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	cgroup2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"

	agentv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto/v1"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/config"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/pod"
)

// declared is a sandbox that the Sandbox API has made: it is there without a
// container, and stays when the last one has gone.
type declared struct {
	pod pod.Config
	// config is the request's, with the size of the machine.
	config config.Config
	netns  pin
}

// files are those that the guest has for each container: the pod's, and what a
// default network brings to a pod that says nothing of it.
func (d *declared) files() []string {
	files := d.pod.Paths()
	for _, f := range d.network().files() {
		if !slices.Contains(files, f) {
			files = append(files, f)
		}
	}
	return files
}

// network is the pod's: the namespace that it was given, or else what there is
// without. One that was given something else has none: it has asked for a certain
// network, and not for ours.
func (d *declared) network() networkRequest {
	switch {
	case d.netns.namespace:
		return networkRequest{netns: d.pod.NetNS}
	case d.netns.file != nil:
		return networkRequest{}
	}
	return networkRequest{standard: d.config.Network.Mode == config.NetworkDefault}
}

// Declare makes this a sandbox of its own, of which nothing runs yet: the
// Sandbox API's Create. errdefs.ErrAlreadyExists if there is a sandbox, or a
// container, already. A size that is not to be had is refused here.
func (s *Sandbox) Declare(p pod.Config, cfg config.Config) (err error) {
	if cfg, err = s.sized(s.ctx, p.Size(), cfg); err != nil {
		return fmt.Errorf("sandbox %s: %w", p.ID, err)
	}
	netns, err := pinNetNS(s.ctx, p)
	if err != nil {
		return fmt.Errorf("sandbox %s: %w", p.ID, err)
	}
	defer func() {
		if err != nil {
			netns.release()
		}
	}()
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.declared != nil:
		return fmt.Errorf("sandbox %s: this shim has sandbox %s: %w", p.ID, s.declared.pod.ID, errdefs.ErrAlreadyExists)
	case s.state != stateNew || len(s.containers) > 0:
		return fmt.Errorf("sandbox %s: this shim has a container without one: %w", p.ID, errdefs.ErrAlreadyExists)
	}
	s.declared = &declared{pod: p, config: cfg, netns: netns}
	return nil
}

// StartDeclared boots the machine of a declared sandbox and makes the pod in it.
// errdefs.ErrFailedPrecondition if it has not been declared, or has ended.
func (s *Sandbox) StartDeclared(ctx context.Context, id string) error {
	d, err := s.declaredAs(id)
	if err != nil {
		return err
	}
	_, err = s.machine(ctx, machineRequest{
		id:       id,
		bundle:   d.pod.Bundle,
		member:   id,
		config:   d.config,
		size:     d.config.Machine.Size(),
		cgroup:   d.pod.Cgroup,
		network:  d.network(),
		hostname: d.pod.Hostname,
		pod:      &d.pod,
	})
	return err
}

// declaredAs is the declared sandbox, if it has this id. Before there is one,
// the error is errdefs.ErrFailedPrecondition, for another errdefs.ErrNotFound.
func (s *Sandbox) declaredAs(id string) (*declared, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.declared == nil:
		return nil, fmt.Errorf("sandbox %s has not been created: %w", id, errdefs.ErrFailedPrecondition)
	case s.declared.pod.ID != id:
		return nil, fmt.Errorf("sandbox %s: this shim has sandbox %s: %w", id, s.declared.pod.ID, errdefs.ErrNotFound)
	}
	return s.declared, nil
}

// Status is what is to be said of a sandbox.
type Status struct {
	// Ready is true while the machine runs.
	Ready bool
	// Pid is the machine's process on the host, while it runs.
	Pid uint32
	// Created is when the machine was up, Exit how and when it ended; zero before.
	Created time.Time
	Exit    Exit
	// NetNS is the host's network namespace that the sandbox was given.
	NetNS string
	// Machine names the machine in logs and process lists.
	Machine string
}

// Status describes the declared sandbox.
func (s *Sandbox) Status(id string) (Status, error) {
	d, err := s.declaredAs(id)
	if err != nil {
		return Status{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	st := Status{Ready: s.state == stateRunning, Created: s.created, Exit: s.exit, NetNS: d.pod.NetNS}
	if s.vm != nil {
		st.Machine = s.vm.ID()
	}
	if st.Ready {
		st.Pid = uint32(s.vm.Pid())
	}
	return st, nil
}

// WaitEnd blocks until the machine of the declared sandbox has ended, or it was
// stopped without ever having had one. The status is 0 if that was asked for,
// and otherwise that of a process killed.
func (s *Sandbox) WaitEnd(ctx context.Context, id string) (Exit, error) {
	if _, err := s.declaredAs(id); err != nil {
		return Exit{}, err
	}
	select {
	case <-s.ended:
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.exit, nil
	case <-ctx.Done():
		return Exit{}, fmt.Errorf("wait for the end of sandbox %s: %w", id, context.Cause(ctx))
	}
}

// Ping returns nil when the guest of the declared sandbox has answered.
func (s *Sandbox) Ping(ctx context.Context, id string) error {
	return s.ask(ctx, id, "ping", func(ctx context.Context, v *vm) error {
		_, err := v.agent.hello(ctx)
		return err
	})
}

// Metrics are what all containers of the declared sandbox use together.
func (s *Sandbox) Metrics(ctx context.Context, id string) (*cgroup2.Metrics, error) {
	var resp *agentv1.PodMetricsResponse
	err := s.ask(ctx, id, "measure", func(ctx context.Context, v *vm) (err error) {
		resp, err = v.agent.pod.Metrics(ctx, &agentv1.PodMetricsRequest{})
		return err
	})
	if err != nil {
		return nil, err
	}
	metrics, err := metricsIn(resp.Metrics)
	if err != nil {
		return nil, fmt.Errorf("measure sandbox %s: %w", id, err)
	}
	return metrics, nil
}

// ask makes one request to the agent of the declared sandbox in bounded time.
func (s *Sandbox) ask(ctx context.Context, id, what string, f func(context.Context, *vm) error) error {
	if _, err := s.declaredAs(id); err != nil {
		return err
	}
	s.mu.Lock()
	v, state := s.vm, s.state
	s.mu.Unlock()
	if state != stateRunning {
		return fmt.Errorf("%s sandbox %s: it is %s: %w", what, id, state, errdefs.ErrFailedPrecondition)
	}
	ctx, cancel := context.WithTimeout(ctx, v.agentTimeout)
	defer cancel()
	ctx, release := whileAlive(ctx, v.Machine)
	defer release()
	if err := f(ctx, v); err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("%s sandbox %s: %w", what, id, context.Cause(ctx))
		}
		return fmt.Errorf("%s sandbox %s: %w", what, id, errgrpc.ToNative(err))
	}
	return nil
}

// Stop ends the machine of the declared sandbox, with whatever runs in it.
// Processes have grace between SIGTERM and SIGKILL. The sandbox's containers can
// still be looked at and deleted. Stopping again does nothing.
func (s *Sandbox) Stop(ctx context.Context, id string, grace time.Duration) error {
	if _, err := s.declaredAs(id); err != nil {
		return err
	}
	s.mu.Lock()
	booted := s.beginStop()
	containers := s.readyContainers()
	s.mu.Unlock()
	if err := s.stop(ctx, booted, grace); err != nil {
		return err
	}
	for _, c := range containers {
		c.awaitExit(ctx)
	}
	return nil
}

// configurePod makes a machine that has just come up the pod's.
func (v *vm) configurePod(ctx context.Context, p *pod.Config) error {
	r := &agentv1.ConfigurePodRequest{Hostname: p.Hostname, Sysctls: p.Sysctls}
	for _, f := range p.Files {
		r.Files = append(r.Files, &agentv1.PodFile{Name: f.Name(), Content: f.Content})
	}
	ctx, cancel := context.WithTimeout(ctx, v.agentTimeout)
	defer cancel()
	ctx, release := whileAlive(ctx, v.Machine)
	defer release()
	if _, err := v.agent.pod.Configure(ctx, r); err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("set up the pod: %w", errors.Join(err, context.Cause(ctx)))
		}
		return fmt.Errorf("set up the pod: %w", errgrpc.ToNative(err))
	}
	return nil
}
