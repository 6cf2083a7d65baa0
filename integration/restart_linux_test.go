package integration

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/lab"
)

// TestRestart is about a containerd that is away at a bad time.
func TestRestart(t *testing.T) {
	t.Run("pods", func(t *testing.T) {
		client, err := lab.NewCrictlClient(theLab.Context(t.Context()), theLab)
		if err != nil {
			t.Fatal(err)
		}
		restartWithPod(&clientRig{newRig(t, lab.RuntimeBhyve), client})
	})
	t.Run("killed during a create", func(t *testing.T) { killedDuringCreate(newRig(t, lab.RuntimeBhyve)) })
}

// restartWithPod is that a pod outlives containerd, and can be used, stopped and
// removed by the next one.
func restartWithPod(r *clientRig) {
	id := r.start(r.container("/bin/sh", "-c", "trap 'exit 42' TERM; touch /tmp/ready; while :; do sleep 1; done"))
	r.eventually(commandTimeout, func() error {
		if result := r.exec(id, nil, nil, "/bin/ls", "/tmp/ready"); result.Code != 0 {
			return fmt.Errorf("%s", result)
		}
		return nil
	})
	for _, end := range []func() error{
		func() error { return r.StopContainerd(r.ctx) },
		r.KillContainerd,
	} {
		if err := errors.Join(end(), r.StartContainerd(r.ctx)); err != nil {
			r.Fatal(err)
		}
		r.eventually(commandTimeout, func() error {
			s, err := r.state(id)
			if err == nil && !s.Running {
				err = fmt.Errorf("after containerd's restart the container is %+v", s)
			}
			return err
		})
		r.expect(r.exec(id, nil, nil, "/bin/echo", "still here"), 0, "still here\n")
	}
	ctx, cancel := r.within()
	defer cancel()
	if err := r.client.Stop(ctx, id, 20*time.Second); err != nil {
		r.Error(err)
	}
	r.wantExit(id, 42)
	if err := r.client.Remove(ctx, id); err != nil {
		r.Error(err)
	}
	if s, err := r.state(id); !errdefs.IsNotFound(err) {
		r.Errorf("a pod that was removed is %+v, %v", s, err)
	}
}

// killedDuringCreate kills containerd while the machine boots. The next one has
// to end what the first had asked for and no one waits for any more; the rig
// looks for what stays.
func killedDuringCreate(r *rig) {
	id := r.newID()
	cmd := r.Command(r.ctx, "run", "--detach", "--null-io", "--runtime", r.runtime, lab.Image, id, "/bin/probe", "signals")
	if err := cmd.Start(); err != nil {
		r.Fatal(err)
	}
	r.eventually(commandTimeout, func() error { return machineRuns(id) })
	if err := r.KillContainerd(); err != nil {
		r.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		r.Error("the client was done before containerd was killed")
	}
	if err := r.StartContainerd(r.ctx); err != nil {
		r.Fatal(err)
	}
	r.removeContainer(id)
	// The name can be used again.
	r.expect(r.ctr("run", "--rm", "--runtime", r.runtime, lab.Image, id, "/bin/echo", "again"), 0, "again\n")
}
