//go:build linux

package agent

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/process"
	runctask "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/task"
	"github.com/containerd/containerd/v2/pkg/identifiers"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/shutdown"
	"github.com/containerd/errdefs"
	"github.com/containerd/go-runc"
	"github.com/containerd/log"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto"
)

const (
	// ociRuntime is the guest image's OCI runtime, where settleRuntime puts it.
	ociRuntime = runtimeDir + "/crun"
	// ociRoot is where it keeps the state of containers.
	ociRoot = "/run/oci"

	// drainTimeout bounds how long Delete waits for output that the host does
	// not read.
	drainTimeout = 10 * time.Second
	// exitEventTimeout bounds how long Delete waits for an exit event.
	exitEventTimeout = 2 * time.Second
	// cleanupTimeout bounds the removal of what a failed Create left.
	cleanupTimeout = 10 * time.Second
)

// taskService is containerd's runc task service behind what is different in a
// guest: bundles come from the bundle service, standard streams are connections,
// the runtime is not the caller's to choose, and the end of the last task is
// not the end of the process. Methods that are not here are containerd's.
type taskService struct {
	task.TTRPCTaskService

	bundles *bundles
	stdio   *streams
	events  *eventLog
	ooms    *oomCounts

	mu    sync.Mutex
	procs map[processKey]*guestProcess
}

func newTaskService(ctx context.Context, b *bundles, stdio *streams, events *eventLog, sd shutdown.Service) (*taskService, error) {
	s := &taskService{
		bundles: b,
		stdio:   stdio,
		events:  events,
		ooms:    newOOMCounts(cgroupRoot),
		procs:   map[processKey]*guestProcess{},
	}
	inner, err := runctask.NewTaskService(ctx, exitWatcher{events, s.sawExit, s.ooms}, sd)
	if err != nil {
		return nil, fmt.Errorf("task service: %w", err)
	}
	s.TTRPCTaskService = inner
	return s, nil
}

// Create makes the container of a bundle that the bundle service has made.
func (s *taskService) Create(ctx context.Context, r *task.CreateTaskRequest) (_ *task.CreateTaskResponse, retErr error) {
	if err := validateCreate(r); err != nil {
		return nil, err
	}
	ns, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.events.bindNamespace(ns); err != nil {
		return nil, err
	}
	if err := s.bundles.use(r.ID); err != nil {
		return nil, err
	}
	defer func() {
		if retErr != nil {
			s.bundles.unuse(r.ID)
		}
	}()
	pio, err := s.openIO(processKey{container: r.ID}, stdioURIs{r.Stdin, r.Stdout, r.Stderr})
	if err != nil {
		return nil, fmt.Errorf("task %s: %w", r.ID, err)
	}
	defer func() {
		if retErr != nil {
			s.dropIO(processKey{container: r.ID})
		}
	}()

	opts, err := typeurl.MarshalAnyToProto(&options.Options{BinaryName: ociRuntime, Root: ociRoot})
	if err != nil {
		return nil, err
	}
	resp, err := s.TTRPCTaskService.Create(ctx, &task.CreateTaskRequest{
		ID:       r.ID,
		Bundle:   r.Bundle,
		Terminal: r.Terminal,
		Stdin:    pio.stdin,
		Stdout:   pio.stdout,
		Stderr:   pio.stderr,
		Options:  opts,
	})
	if err != nil {
		removeContainer(ctx, ns, r.ID)
		return nil, err
	}
	if err := s.ooms.watch(r.ID, resp.Pid); err != nil {
		log.G(ctx).WithError(err).WithField("container_id", r.ID).Warn("out of memory may be told of late")
	}
	pio.serviceOpened(s.stdinCloser(ctx, r.ID, ""))
	return resp, nil
}

func validateCreate(r *task.CreateTaskRequest) error {
	if err := identifiers.Validate(r.ID); err != nil {
		return err
	}
	switch {
	case r.Bundle != agentproto.BundleDir(r.ID):
		return fmt.Errorf("task %s: bundle %q: want %q: %w", r.ID, r.Bundle, agentproto.BundleDir(r.ID), errdefs.ErrInvalidArgument)
	case len(r.Rootfs) > 0:
		return fmt.Errorf("task %s: the root filesystem is the bundle's: %w", r.ID, errdefs.ErrInvalidArgument)
	case r.Options != nil:
		return fmt.Errorf("task %s: the runtime has no options: %w", r.ID, errdefs.ErrInvalidArgument)
	case r.Checkpoint != "" || r.ParentCheckpoint != "":
		return fmt.Errorf("task %s: restore of a process: %w", r.ID, errdefs.ErrNotImplemented)
	}
	return nil
}

// removeContainer removes what the runtime may have left of a container that
// could not be created. Mostly there is nothing.
func removeContainer(ctx context.Context, namespace, id string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	rt := process.NewRunc(ociRoot, agentproto.BundleDir(id), namespace, ociRuntime, false)
	if err := rt.Delete(ctx, id, &runc.DeleteOpts{Force: true}); err != nil {
		log.G(ctx).WithError(err).WithField("container_id", id).Debug("remove container that was not created")
	}
}

// Exec prepares a further process of a container.
func (s *taskService) Exec(ctx context.Context, r *task.ExecProcessRequest) (*emptypb.Empty, error) {
	if err := identifiers.Validate(r.ExecID); err != nil {
		return nil, err
	}
	if r.Spec == nil {
		return nil, fmt.Errorf("exec %s of task %s: no process: %w", r.ExecID, r.ID, errdefs.ErrInvalidArgument)
	}
	key := processKey{r.ID, r.ExecID}
	pio, err := s.openIO(key, stdioURIs{r.Stdin, r.Stdout, r.Stderr})
	if err != nil {
		return nil, fmt.Errorf("exec %s of task %s: %w", r.ExecID, r.ID, err)
	}
	resp, err := s.TTRPCTaskService.Exec(ctx, &task.ExecProcessRequest{
		ID:       r.ID,
		ExecID:   r.ExecID,
		Terminal: r.Terminal,
		Stdin:    pio.stdin,
		Stdout:   pio.stdout,
		Stderr:   pio.stderr,
		Spec:     r.Spec,
	})
	if err != nil {
		s.dropIO(key)
		return nil, err
	}
	return resp, nil
}

// Start starts a process. For an exec, this is where the task service opens
// its standard streams.
func (s *taskService) Start(ctx context.Context, r *task.StartRequest) (*task.StartResponse, error) {
	resp, err := s.TTRPCTaskService.Start(ctx, r)
	if r.ExecID == "" {
		return resp, err
	}
	key := processKey{r.ID, r.ExecID}
	if err != nil {
		s.dropIO(key)
		return nil, err
	}
	if p := s.process(key); p != nil {
		p.io.serviceOpened(s.stdinCloser(ctx, r.ID, r.ExecID))
	}
	return resp, nil
}

// Delete removes a process that has ended, or a container with all of its
// processes. When it returns, all output has been sent.
func (s *taskService) Delete(ctx context.Context, r *task.DeleteRequest) (*task.DeleteResponse, error) {
	key := processKey{r.ID, r.ExecID}
	s.awaitExitEvent(ctx, key)
	resp, err := s.TTRPCTaskService.Delete(ctx, r)
	if err != nil {
		return nil, err
	}
	s.finishIO(ctx, key)
	if r.ExecID == "" {
		for _, key := range s.execsOf(r.ID) {
			s.dropIO(key)
		}
		s.bundles.unuse(r.ID)
		s.ooms.forget(r.ID)
	}
	return resp, nil
}

// CloseIO does nothing but look the process up: the end of its input is in
// band. To close the task service's writer here could overtake data, and its
// opening.
func (s *taskService) CloseIO(_ context.Context, r *task.CloseIORequest) (*emptypb.Empty, error) {
	if s.process(processKey{r.ID, r.ExecID}) == nil {
		return nil, fmt.Errorf("task %s, process %q: %w", r.ID, r.ExecID, errdefs.ErrNotFound)
	}
	return &emptypb.Empty{}, nil
}

// Shutdown does nothing: the agent ends with the machine.
func (s *taskService) Shutdown(context.Context, *task.ShutdownRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, nil
}

// Checkpoint is of machines, not of processes.
func (s *taskService) Checkpoint(_ context.Context, r *task.CheckpointTaskRequest) (*emptypb.Empty, error) {
	return nil, fmt.Errorf("task %s: checkpoint of a process: %w", r.ID, errdefs.ErrNotImplemented)
}

// stdinCloser returns what closes the end of a process's input that the task
// service keeps.
func (s *taskService) stdinCloser(ctx context.Context, id, execID string) func() {
	ctx = context.WithoutCancel(ctx)
	return func() {
		_, err := s.TTRPCTaskService.CloseIO(ctx, &task.CloseIORequest{ID: id, ExecID: execID, Stdin: true})
		if err != nil && !errdefs.IsNotFound(err) {
			processKey{id, execID}.log(ctx).WithError(err).Debug("close stdin")
		}
	}
}
