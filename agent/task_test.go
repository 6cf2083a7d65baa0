//go:build linux

package agent

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	eventstypes "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto"
	agentv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto/v1"
)

// fakeRuntime has the place of containerd's task service: every process in it
// has ended.
type fakeRuntime struct {
	task.TTRPCTaskService
	created  *task.CreateTaskRequest
	startErr error
	deleted  atomic.Bool
}

func (f *fakeRuntime) Create(_ context.Context, r *task.CreateTaskRequest) (*task.CreateTaskResponse, error) {
	f.created = r
	return &task.CreateTaskResponse{Pid: 2}, nil
}

func (f *fakeRuntime) Exec(context.Context, *task.ExecProcessRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, nil
}

func (f *fakeRuntime) Start(context.Context, *task.StartRequest) (*task.StartResponse, error) {
	return &task.StartResponse{Pid: 2}, f.startErr
}

func (f *fakeRuntime) State(context.Context, *task.StateRequest) (*task.StateResponse, error) {
	return &task.StateResponse{Status: tasktypes.Status_STOPPED}, nil
}

func (f *fakeRuntime) Delete(context.Context, *task.DeleteRequest) (*task.DeleteResponse, error) {
	f.deleted.Store(true)
	return &task.DeleteResponse{}, nil
}

func newTestTasks(t *testing.T) (*taskService, *fakeRuntime, context.Context) {
	t.Helper()
	f := newFakeMounts(t)
	if _, err := f.bundles.Create(t.Context(), f.request(t, "c1", "rootfs")); err != nil {
		t.Fatal(err)
	}
	rt := &fakeRuntime{}
	stdio := newStreams()
	t.Cleanup(stdio.close)
	return &taskService{
		TTRPCTaskService: rt,
		bundles:          f.bundles,
		stdio:            stdio,
		events:           newEventLog(),
		ooms:             newOOMCounts(t.TempDir()),
		procs:            map[processKey]*guestProcess{},
	}, rt, namespaces.WithNamespace(t.Context(), "default")
}

func createRequest() *task.CreateTaskRequest {
	return &task.CreateTaskRequest{ID: "c1", Bundle: agentproto.BundleDir("c1")}
}

func TestTaskCreateChoosesTheRuntime(t *testing.T) {
	s, rt, ctx := newTestTasks(t)
	if _, err := s.Create(ctx, createRequest()); err != nil {
		t.Fatal(err)
	}
	if got := string(rt.created.Options.GetValue()); !strings.Contains(got, ociRuntime) || !strings.Contains(got, ociRoot) {
		t.Errorf("options %q do not name %s and %s", got, ociRuntime, ociRoot)
	}
	if _, err := s.Create(ctx, createRequest()); !errdefs.IsAlreadyExists(err) {
		t.Errorf("a second task: %v; want AlreadyExists", err)
	}
	if _, err := s.bundles.Delete(ctx, &agentv1.DeleteBundleRequest{Id: "c1"}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("delete the bundle of a task: %v; want FailedPrecondition", err)
	}
}

func TestTaskCreateRefuses(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*task.CreateTaskRequest)
		is     func(error) bool
	}{
		"id":         {func(r *task.CreateTaskRequest) { r.ID = "../x" }, errdefs.IsInvalidArgument},
		"bundle":     {func(r *task.CreateTaskRequest) { r.Bundle = "/" }, errdefs.IsInvalidArgument},
		"rootfs":     {func(r *task.CreateTaskRequest) { r.Rootfs = []*types.Mount{{Type: "bind"}} }, errdefs.IsInvalidArgument},
		"options":    {func(r *task.CreateTaskRequest) { r.Options = &anypb.Any{} }, errdefs.IsInvalidArgument},
		"checkpoint": {func(r *task.CreateTaskRequest) { r.Checkpoint = "/x" }, errdefs.IsNotImplemented},
		"no bundle": {func(r *task.CreateTaskRequest) {
			r.ID, r.Bundle = "c2", agentproto.BundleDir("c2")
		}, errdefs.IsNotFound},
	} {
		t.Run(name, func(t *testing.T) {
			s, rt, ctx := newTestTasks(t)
			r := createRequest()
			tc.change(r)
			if _, err := s.Create(ctx, r); !tc.is(err) {
				t.Errorf("got %v", err)
			}
			if rt.created != nil {
				t.Error("the runtime was asked all the same")
			}
		})
	}
}

// The exit of a process is published before its deletion.
func TestTaskDeleteWaitsForExitEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, rt, ctx := newTestTasks(t)
		if _, err := s.Create(ctx, createRequest()); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() {
			_, err := s.Delete(ctx, &task.DeleteRequest{ID: "c1"})
			done <- err
		}()
		synctest.Wait()
		if rt.deleted.Load() {
			t.Error("deleted before the exit was published")
		}
		w := exitWatcher{s.events, s.sawExit, newOOMCounts(t.TempDir())}
		// Twice, as for two processes that have had one pid.
		for range 2 {
			if err := w.Publish(ctx, "/tasks/exit", &eventstypes.TaskExit{ContainerID: "c1", ID: "c1"}); err != nil {
				t.Fatal(err)
			}
		}
		if err := <-done; err != nil || !rt.deleted.Load() {
			t.Errorf("deleted: %v, %v", rt.deleted.Load(), err)
		}
		if _, err := s.bundles.Delete(ctx, &agentv1.DeleteBundleRequest{Id: "c1"}); err != nil {
			t.Errorf("the bundle is still in use: %v", err)
		}
	})
}

func TestExecThatDoesNotStart(t *testing.T) {
	s, rt, ctx := newTestTasks(t)
	exec := &task.ExecProcessRequest{ID: "c1", ExecID: "e1", Spec: &anypb.Any{}}
	if _, err := s.Exec(ctx, exec); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Exec(ctx, exec); !errdefs.IsAlreadyExists(err) {
		t.Errorf("a second exec of that id: %v; want AlreadyExists", err)
	}
	rt.startErr = errors.New("no such program")
	if _, err := s.Start(ctx, &task.StartRequest{ID: "c1", ExecID: "e1"}); !errors.Is(err, rt.startErr) {
		t.Errorf("got %v, want %v", err, rt.startErr)
	}
	if len(s.procs) > 0 {
		t.Errorf("its streams are still held: %v", s.procs)
	}
	if _, err := s.Exec(ctx, &task.ExecProcessRequest{ID: "c1", ExecID: "e2"}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("exec of nothing: %v; want InvalidArgument", err)
	}
}

func TestTypedErrors(t *testing.T) {
	info := &ttrpc.UnaryServerInfo{FullMethod: "/x/Y"}
	_, err := typedErrors(t.Context(), nil, info, func(context.Context, func(any) error) (any, error) {
		panic("oh")
	})
	if err := errgrpc.ToNative(err); !errdefs.IsInternal(err) || !strings.Contains(err.Error(), "/x/Y: panic: oh") {
		t.Errorf("a panic became %v; want Internal, and where", err)
	}
	_, err = typedErrors(t.Context(), nil, info, func(context.Context, func(any) error) (any, error) {
		return nil, errdefs.ErrNotFound
	})
	if !errdefs.IsNotFound(errgrpc.ToNative(err)) {
		t.Errorf("NotFound became %v", err)
	}
}

// What a runtime says when it is killed at the deadline says nothing of that.
func TestAnErrorAtTheDeadlineSaysSo(t *testing.T) {
	info := &ttrpc.UnaryServerInfo{FullMethod: "/task/Create"}
	ctx, cancel := context.WithDeadline(t.Context(), time.Unix(1, 0))
	defer cancel()
	_, err := typedErrors(ctx, nil, info, func(context.Context, func(any) error) (any, error) {
		return nil, errgrpc.ToGRPC(errors.New("crun did not terminate successfully: signal: killed"))
	})
	if !errdefs.IsDeadlineExceeded(errgrpc.ToNative(err)) || !strings.Contains(err.Error(), "signal: killed") || !strings.Contains(err.Error(), "deadline") {
		t.Errorf("got %v", err)
	}
}
