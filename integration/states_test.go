//go:build linux || freebsd

package integration

import (
	"github.com/containerd/containerd/api/services/tasks/v1"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
)

// testStates asks for what each state refuses, and for what none does. It talks
// to the service: containerd's client refuses some of it itself.
func testStates(r *rig) {
	service := r.Client.TaskService()
	refused := func(what string, err error) {
		r.Helper()
		if err == nil {
			r.Errorf("%s was not refused", what)
		}
	}
	state := func(id string, want tasktypes.Status) *tasktypes.Process {
		r.Helper()
		resp, err := service.Get(r.ctx, &tasks.GetRequest{ContainerID: id})
		if err != nil {
			r.Fatal(err)
		}
		if resp.Process.Status != want {
			r.Errorf("task %s is %v, want %v", id, resp.Process.Status, want)
		}
		return resp.Process
	}

	id := r.create()
	state(id, tasktypes.Status_CREATED)
	_, err := service.Pause(r.ctx, &tasks.PauseTaskRequest{ContainerID: id})
	refused("pause of a created task", err)
	_, err = service.Resume(r.ctx, &tasks.ResumeTaskRequest{ContainerID: id})
	refused("resume of a created task", err)
	_, err = service.Kill(r.ctx, &tasks.KillRequest{ContainerID: id, Signal: 9})
	if err != nil {
		r.Errorf("kill of a created task: %v", err)
	}
	r.waitStatus(id, "STOPPED")
	if p := state(id, tasktypes.Status_STOPPED); p.ExitStatus != 128+9 || !p.ExitedAt.IsValid() {
		r.Errorf("a task killed before its start is %v", p)
	}
	_, err = service.Kill(r.ctx, &tasks.KillRequest{ContainerID: id, Signal: 9})
	if !errdefs.IsNotFound(errgrpc.ToNative(err)) {
		r.Errorf("kill of a stopped task: %v", err)
	}
	_, err = service.Start(r.ctx, &tasks.StartRequest{ContainerID: id})
	refused("start of a stopped task", err)
	if resp, err := service.Delete(r.ctx, &tasks.DeleteTaskRequest{ContainerID: id}); err != nil || resp.ExitStatus != 128+9 {
		r.Errorf("delete of a stopped task: %v, %v", resp, err)
	}

	// A task that never ran goes without being killed first.
	id = r.create()
	if _, err := service.Delete(r.ctx, &tasks.DeleteTaskRequest{ContainerID: id}); err != nil {
		r.Errorf("delete of a created task: %v", err)
	}
	if _, err := service.Get(r.ctx, &tasks.GetRequest{ContainerID: id}); !errdefs.IsNotFound(errgrpc.ToNative(err)) {
		r.Errorf("after its deletion, the task gives %v", err)
	}
}
