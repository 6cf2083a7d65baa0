//go:build linux

package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"runtime/debug"

	"github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/pkg/shutdown"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/log"
	"github.com/containerd/ttrpc"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto"
	agentv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto/v1"
)

// server is everything that answers on the link.
type server struct {
	control *ttrpc.Server
	stdio   *streams
	ninep   *streams
	events  *eventLog
	system  *system
	tasks   *taskService
	// endTasks tells containerd's task service to end.
	endTasks shutdown.Service
}

func newServer(ctx context.Context) (*server, error) {
	control, err := ttrpc.NewServer(ttrpc.WithUnaryServerInterceptor(typedErrors))
	if err != nil {
		return nil, fmt.Errorf("control server: %w", err)
	}
	ctx, endTasks := shutdown.WithShutdown(ctx)
	thaw := newThawing()
	s := &server{
		control:  control,
		stdio:    newStreams(),
		ninep:    newStreams(),
		events:   newEventLog(),
		system:   newSystem(thaw.knownBootID),
		endTasks: endTasks,
	}
	pod := newPod()
	mounts := newMountTable(s.ninep)
	bundles := newBundles(s.ninep, mounts, func(config []byte) error {
		if err := thaw.admit(); err != nil {
			return err
		}
		return pod.provide(config)
	})
	s.tasks, err = newTaskService(ctx, bundles, s.stdio, s.events, endTasks)
	if err != nil {
		return nil, err
	}
	task.RegisterTTRPCTaskService(control, s.tasks)
	agentv1.RegisterNetworkService(control, newNetwork())
	agentv1.RegisterSystemService(control, s.system)
	agentv1.RegisterThawService(control, thaw)
	agentv1.RegisterBundleService(control, bundles)
	agentv1.RegisterSharesService(control, bundles)
	agentv1.RegisterPodService(control, pod)
	agentv1.RegisterVolumesService(control, newVolumes(s.ninep, mounts))
	agentv1.RegisterEventsService(control, s.events)
	agentv1.RegisterCheckpointsService(control, newCheckpoints(mounts, s.tasks, filepath.Join(cgroupRoot, agentproto.SandboxCgroup)))
	agentv1.RegisterRehearsalService(control, &rehearsal{})
	return s, nil
}

// run serves l until the host asks for power-off, and then prepares it. An
// error says that a listener failed: no one can ask for anything any more.
func (s *server) run(ctx context.Context, l *link) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	failed := make(chan error)
	serve := func(port uint32, loop func(context.Context, net.Listener) error) {
		for _, ln := range l.byPort[port] {
			go func() {
				err := loop(ctx, ln)
				select {
				case failed <- fmt.Errorf("port %d: %w", port, err):
				case <-ctx.Done():
				}
			}()
		}
	}
	serve(agentproto.PortControl, s.control.Serve)
	serve(agentproto.PortStdio, s.stdio.serve)
	serve(agentproto.PortNinep, s.ninep.serve)
	serve(agentproto.PortForward, (&forwarder{netns: agentproto.SandboxNetNS}).serve)

	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case grace := <-s.system.powerOff:
		return s.shutDown(ctx, l, grace)
	}
}

// typedErrors is where errors leave the agent: they become the gRPC codes of
// their errdefs kind, and so does a panic, which would otherwise take the
// machine with it. What failed because the request's time was up says that: a
// runtime killed halfway says only that it was killed.
func typedErrors(ctx context.Context, unmarshal ttrpc.Unmarshaler, info *ttrpc.UnaryServerInfo, method ttrpc.Method) (resp any, err error) {
	defer func() {
		if p := recover(); p != nil {
			log.G(ctx).WithField("method", info.FullMethod).Errorf("panic: %v\n%s", p, debug.Stack())
			err = fmt.Errorf("%s: panic: %v: %w", info.FullMethod, p, errdefs.ErrInternal)
		}
		if err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
			err = fmt.Errorf("%s: given up at the request's deadline: %w: %v", info.FullMethod, context.DeadlineExceeded, errgrpc.ToNative(err))
		}
		err = errgrpc.ToGRPC(err)
	}()
	return method(ctx, unmarshal)
}
