// Package task is the RPC edge of the shim: containerd's Task service in
// versions 3 and 2, request by request translated into calls on the sandbox.
// Nothing is decided here.
package task

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/config"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/edge"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/sandbox"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/stdio"
)

// Service implements containerd's Task service for one sandbox.
//
// The pid contract: wherever containerd wants one pid (Create, Start, State,
// Connect, events) it is that of the machine's process on the host, the only
// one that means anything there. Pids lists the guest's own.
type Service struct {
	sandbox *sandbox.Sandbox
	// exit ends the shim's process, after the reply.
	exit func()
}

var _ taskapi.TTRPCTaskService = (*Service)(nil)

// New returns the service for s. exit is called when a Shutdown has been
// carried out.
func New(s *sandbox.Sandbox, exit func()) *Service {
	return &Service{sandbox: s, exit: exit}
}

var empty = &emptypb.Empty{}

// Create makes a container. It boots the sandbox's machine if it is the first.
func (s *Service) Create(ctx context.Context, r *taskapi.CreateTaskRequest) (*taskapi.CreateTaskResponse, error) {
	cfg, err := config.FromOptions(r.Options)
	if err != nil {
		return nil, edge.Error(ctx, "create", err)
	}
	_, err = s.sandbox.Create(ctx, sandbox.CreateRequest{
		ID:     r.ID,
		Bundle: r.Bundle,
		Rootfs: r.Rootfs,
		Stdio:  stdio.Config{Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr, Terminal: r.Terminal},
		Config: cfg,

		Checkpoint: r.Checkpoint,
	})
	if err != nil {
		return nil, edge.Error(ctx, "create", err)
	}
	return &taskapi.CreateTaskResponse{Pid: s.sandbox.Pid()}, nil
}

// Start starts a container's init, or a process added by Exec.
func (s *Service) Start(ctx context.Context, r *taskapi.StartRequest) (*taskapi.StartResponse, error) {
	c, err := s.sandbox.Container(r.ID)
	if err == nil {
		err = c.Start(ctx, r.ExecID)
	}
	if err != nil {
		return nil, edge.Error(ctx, "start", err)
	}
	return &taskapi.StartResponse{Pid: s.sandbox.Pid()}, nil
}

// Exec adds a process to a container.
func (s *Service) Exec(ctx context.Context, r *taskapi.ExecProcessRequest) (*emptypb.Empty, error) {
	c, err := s.sandbox.Container(r.ID)
	if err == nil {
		err = c.Exec(ctx, r.ExecID, stdio.Config{Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr, Terminal: r.Terminal}, r.Spec)
	}
	return empty, edge.Error(ctx, "exec", err)
}

// State describes a process.
func (s *Service) State(ctx context.Context, r *taskapi.StateRequest) (*taskapi.StateResponse, error) {
	c, err := s.sandbox.Container(r.ID)
	if err != nil {
		return nil, edge.Error(ctx, "state", err)
	}
	status, exit, err := c.Status(r.ExecID)
	if err != nil {
		return nil, edge.Error(ctx, "state", err)
	}
	streams, err := c.Stdio(r.ExecID)
	if err != nil {
		return nil, edge.Error(ctx, "state", err)
	}
	id := r.ExecID
	if id == "" {
		id = c.ID
	}
	return &taskapi.StateResponse{
		ID:         id,
		ExecID:     r.ExecID,
		Bundle:     c.Bundle,
		Pid:        s.sandbox.Pid(),
		Status:     status,
		Stdin:      streams.Stdin,
		Stdout:     streams.Stdout,
		Stderr:     streams.Stderr,
		Terminal:   streams.Terminal,
		ExitStatus: exit.Status,
		ExitedAt:   exitedAt(exit),
	}, nil
}

// Wait returns when a process has exited and its output has been delivered.
func (s *Service) Wait(ctx context.Context, r *taskapi.WaitRequest) (*taskapi.WaitResponse, error) {
	c, err := s.sandbox.Container(r.ID)
	if err != nil {
		return nil, edge.Error(ctx, "wait", err)
	}
	exit, err := c.Wait(ctx, r.ExecID)
	if err != nil {
		return nil, edge.Error(ctx, "wait", err)
	}
	return &taskapi.WaitResponse{ExitStatus: exit.Status, ExitedAt: exitedAt(exit)}, nil
}

// Kill sends a signal.
func (s *Service) Kill(ctx context.Context, r *taskapi.KillRequest) (*emptypb.Empty, error) {
	c, err := s.sandbox.Container(r.ID)
	if err == nil {
		err = c.Kill(ctx, r.ExecID, guestSignal(runtime.GOOS, r.Signal), r.All)
	}
	return empty, edge.Error(ctx, "kill", err)
}

// Delete removes a stopped process, or the whole container.
func (s *Service) Delete(ctx context.Context, r *taskapi.DeleteRequest) (*taskapi.DeleteResponse, error) {
	c, err := s.sandbox.Container(r.ID)
	if err != nil {
		return nil, edge.Error(ctx, "delete", err)
	}
	exit, err := c.Delete(ctx, r.ExecID)
	if err != nil {
		return nil, edge.Error(ctx, "delete", err)
	}
	return &taskapi.DeleteResponse{Pid: s.sandbox.Pid(), ExitStatus: exit.Status, ExitedAt: exitedAt(exit)}, nil
}

// ResizePty sets the size of a process's terminal.
func (s *Service) ResizePty(ctx context.Context, r *taskapi.ResizePtyRequest) (*emptypb.Empty, error) {
	c, err := s.sandbox.Container(r.ID)
	if err == nil {
		err = c.Resize(ctx, r.ExecID, r.Width, r.Height)
	}
	return empty, edge.Error(ctx, "resize pty", err)
}

// CloseIO ends a process's standard input.
func (s *Service) CloseIO(ctx context.Context, r *taskapi.CloseIORequest) (*emptypb.Empty, error) {
	c, err := s.sandbox.Container(r.ID)
	if err == nil && r.Stdin {
		err = c.CloseStdin(r.ExecID)
	}
	return empty, edge.Error(ctx, "close io", err)
}

// Pids lists a container's processes, in the guest's numbering.
func (s *Service) Pids(ctx context.Context, r *taskapi.PidsRequest) (*taskapi.PidsResponse, error) {
	c, err := s.sandbox.Container(r.ID)
	if err != nil {
		return nil, edge.Error(ctx, "pids", err)
	}
	processes, err := c.Pids(ctx)
	if err != nil {
		return nil, edge.Error(ctx, "pids", err)
	}
	return &taskapi.PidsResponse{Processes: processes}, nil
}

// Connect names the processes behind the sandbox.
func (s *Service) Connect(context.Context, *taskapi.ConnectRequest) (*taskapi.ConnectResponse, error) {
	return &taskapi.ConnectResponse{ShimPid: uint32(os.Getpid()), TaskPid: s.sandbox.Pid()}, nil
}

// Shutdown ends the machine and then the shim, unless containers are left:
// then it does nothing, as containerd's own shim does.
//
// A machine that has been told to end may need longer than containerd waits, on a
// host where many end at once. The shim goes in any case, and gives back
// what it holds before; what it could not is left to `delete`, which containerd
// runs when the connection ends. So neither is a failure of the client's Delete,
// which it would be as an error here (containerd's core/runtime/v2/shim.go).
func (s *Service) Shutdown(ctx context.Context, r *taskapi.ShutdownRequest) (*emptypb.Empty, error) {
	answered := waitAlmost(ctx, func(ctx context.Context) {
		done, err := s.sandbox.Shutdown(ctx)
		if err != nil {
			log.G(ctx).WithError(err).Error("the machine has not ended in good order")
		}
		if done {
			s.exit()
		}
	})
	if !answered {
		log.G(ctx).Warn("the machine takes its time to end: answering before it has")
	}
	return empty, nil
}

const (
	// answerMargin is how long before the end of a request's time it is answered.
	answerMargin = 500 * time.Millisecond
	// goOnLimit bounds what goes on after the answer.
	goOnLimit = 30 * time.Second
)

// waitAlmost runs work, which goes on when ctx ends, and waits for its end until
// shortly before ctx's. It reports whether that came.
func waitAlmost(ctx context.Context, work func(context.Context)) bool {
	done := make(chan struct{})
	go func() {
		defer close(done)
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), goOnLimit)
		defer cancel()
		work(ctx)
	}()
	waiting, cancel := ctx, context.CancelFunc(func() {})
	if end, ok := ctx.Deadline(); ok {
		waiting, cancel = context.WithDeadline(ctx, end.Add(-answerMargin))
	}
	defer cancel()
	select {
	case <-done:
		return true
	case <-waiting.Done():
		return false
	}
}

// Pause freezes a container's processes.
func (s *Service) Pause(ctx context.Context, r *taskapi.PauseRequest) (*emptypb.Empty, error) {
	c, err := s.sandbox.Container(r.ID)
	if err == nil {
		err = c.Pause(ctx)
	}
	return empty, edge.Error(ctx, "pause", err)
}

// Resume lets a paused container run on.
func (s *Service) Resume(ctx context.Context, r *taskapi.ResumeRequest) (*emptypb.Empty, error) {
	c, err := s.sandbox.Container(r.ID)
	if err == nil {
		err = c.Resume(ctx)
	}
	return empty, edge.Error(ctx, "resume", err)
}

// Checkpoint saves the sandbox of a container with its processes.
func (s *Service) Checkpoint(ctx context.Context, r *taskapi.CheckpointTaskRequest) (*emptypb.Empty, error) {
	exit, err := exitsAfter(r.Options)
	if err != nil {
		return nil, edge.Error(ctx, "checkpoint", err)
	}
	c, err := s.sandbox.Container(r.ID)
	if err == nil {
		err = c.Checkpoint(ctx, r.Path, exit)
	}
	return empty, edge.Error(ctx, "checkpoint", err)
}

// exitsAfter is what of a checkpoint's options has a meaning for machines. The
// others are about what a process has on the host it runs on.
func exitsAfter(o typeurl.Any) (bool, error) {
	if o == nil || o.GetTypeUrl() == "" {
		return false, nil
	}
	var opts runcoptions.CheckpointOptions
	if err := typeurl.UnmarshalTo(o, &opts); err != nil {
		return false, fmt.Errorf("checkpoint options of type %q: %w: %w", o.GetTypeUrl(), err, errdefs.ErrInvalidArgument)
	}
	return opts.Exit, nil
}

// Update changes a container's limits.
func (s *Service) Update(ctx context.Context, r *taskapi.UpdateTaskRequest) (*emptypb.Empty, error) {
	c, err := s.sandbox.Container(r.ID)
	if err == nil {
		err = c.Update(ctx, r.Resources, r.Annotations)
	}
	return empty, edge.Error(ctx, "update", err)
}

// Stats returns what a container uses in the guest, as the metrics of a control
// group of version 2.
func (s *Service) Stats(ctx context.Context, r *taskapi.StatsRequest) (*taskapi.StatsResponse, error) {
	c, err := s.sandbox.Container(r.ID)
	if err != nil {
		return nil, edge.Error(ctx, "stats", err)
	}
	metrics, err := c.Stats(ctx)
	if err != nil {
		return nil, edge.Error(ctx, "stats", err)
	}
	stats, err := typeurl.MarshalAnyToProto(metrics)
	if err != nil {
		return nil, edge.Error(ctx, "stats", err)
	}
	return &taskapi.StatsResponse{Stats: stats}, nil
}

// exitedAt is the zero exit's nil, as containerd wants it for a live process.
func exitedAt(e sandbox.Exit) *timestamppb.Timestamp {
	if e.At.IsZero() {
		return nil
	}
	return timestamppb.New(e.At)
}
