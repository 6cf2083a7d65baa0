package integration

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/lab"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/proc"
)

// TestCheckpointMishaps is what happens to a sandbox while it is being saved.
func TestCheckpointMishaps(t *testing.T) {
	for _, c := range []struct {
		name string
		run  func(*rig)
	}{
		{"shim killed", testSaveShimKilled},
		{"machine killed", testSaveMachineKilled},
		{"agent lost", testSaveAgentLost},
		{"containerd killed", testSaveContainerdKilled},
		{"container killed", testSaveContainerKilled},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(newRig(t, lab.RuntimeBhyve)) })
	}
}

// halfSave is a save that does not go on, as its shim is stopped.
type halfSave struct {
	dir  string
	shim proc.ID
	// saved gets the client's answer.
	saved <-chan error
}

// haveHalfSaved has a task be saved, and stops its shim when a part of its machine
// is in the directory and the description, which comes last, is not. A save that
// was over before is tried again: the task runs on.
func (r *rig) haveHalfSaved(task containerd.Task) halfSave {
	r.Helper()
	dir := r.hostDir()
	shim, err := proc.Identify(r.findProcess("containerd-shim-", task.ID()).Pid)
	if err != nil {
		r.Fatal(err)
	}
	// After a failure it is to give back what it has, before the directory goes.
	r.Cleanup(func() { _ = shim.Signal(unix.SIGCONT) })
	for n := 0; ; n++ {
		dir := filepath.Join(dir, fmt.Sprint(n))
		saved := make(chan error, 1)
		go func() {
			_, err := task.Checkpoint(r.ctx, containerd.WithCheckpointImagePath(dir))
			saved <- err
		}()
		r.eventually(commandTimeout, func() error {
			_, err := os.Stat(filepath.Join(dir, "machine", "state"))
			return err
		})
		ctx, cancel := context.WithTimeout(r.ctx, commandTimeout)
		defer cancel()
		if err := shim.Stop(ctx); err != nil {
			r.Fatal(err)
		}
		if _, err := os.Stat(filepath.Join(dir, "sandbox.json")); errors.Is(err, fs.ErrNotExist) {
			return halfSave{dir, shim, saved}
		}
		r.goOn(shim)
		if err := <-saved; err != nil {
			r.Fatal(err)
		}
	}
}

func (r *rig) goOn(p proc.ID) {
	r.Helper()
	ctx, cancel := context.WithTimeout(r.ctx, commandTimeout)
	defer cancel()
	if err := p.Continue(ctx); err != nil {
		r.Fatal(err)
	}
}

// wantNotSaved waits for the client's answer and has what there is be restored:
// both are refused.
func (r *rig) wantNotSaved(c containerd.Container, half halfSave) {
	r.Helper()
	if err := <-half.saved; err == nil {
		r.Error("half of it was saved, and said to be all")
	}
	var task containerd.Task
	var err error
	r.eventually(commandTimeout, func() error {
		task, err = c.NewTask(r.ctx, cio.NullIO, containerd.WithRestoreImagePath(half.dir))
		if errdefs.IsAlreadyExists(err) {
			// containerd tells of the end of a shim before it forgets its task.
			return err
		}
		return nil
	})
	if err == nil {
		r.Error("half of it was restored")
		r.removeTask(task)
	} else if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "no saved sandbox") {
		r.Errorf("half of it was restored: %v", err)
	}
}

// wantNothingIn checks that there is nothing of what was saved.
func (r *rig) wantNothingIn(dir string) {
	r.Helper()
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		r.Errorf("of what was not saved is left: %v, %v", left, err)
	}
}

// testSaveShimKilled is that all of a sandbox goes with its shim, but for what the
// client has to remove: the half of an image.
func testSaveShimKilled(r *rig) {
	c := r.ledgerContainer()
	task, out := r.task(c)
	r.awaitLines(out, 2)
	half := r.haveHalfSaved(task)
	events := r.subscribe()
	if err := half.shim.Signal(unix.SIGKILL); err != nil {
		r.Fatal(err)
	}
	r.wantDeath(events, c.ID())
	// Which nobody deletes, so that they are the client's to close.
	if err := task.IO().Close(); err != nil {
		r.Error(err)
	}
	r.wantNotSaved(c, half)
	if _, err := os.Stat(filepath.Join(half.dir, "machine", "state")); err != nil {
		r.Errorf("it was not half of an image: %v", err)
	}
}

func testSaveMachineKilled(r *rig) {
	r.wantEndOfSaving(func(c containerd.Container) {
		if err := r.findMachine(c.ID()).Kill(); err != nil {
			r.Fatal(err)
		}
	})
}

// testSaveAgentLost ends all connections to the agent: a guest that nobody can tell
// to go on does not stay.
func testSaveAgentLost(r *rig) {
	r.wantEndOfSaving(func(c containerd.Container) {
		if n, err := hangUp(r.findProcess("containerd-shim-", c.ID()).Pid, int(agentproto.PortControl)); n == 0 || err != nil {
			r.Fatalf("%d connections to the agent: %v", n, err)
		}
	})
}

// hangUp shuts down the connections over IPv6 that a process has to a port.
func hangUp(pid, port int) (n int, err error) {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(pidfd)
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return 0, err
	}
	for _, f := range files {
		number, err := strconv.Atoi(f.Name())
		if err != nil {
			return n, err
		}
		fd, err := unix.PidfdGetfd(pidfd, number, 0)
		if err != nil {
			return n, err
		}
		peer, err := unix.Getpeername(fd)
		if to, ok := peer.(*unix.SockaddrInet6); err == nil && ok && to.Port == port {
			err = unix.Shutdown(fd, unix.SHUT_RDWR)
			n++
		} else {
			err = nil
		}
		if err = errors.Join(err, unix.Close(fd)); err != nil {
			return n, err
		}
	}
	return n, nil
}

// wantEndOfSaving is that a container ends for which something happens while it is
// being saved, and that nothing was saved.
func (r *rig) wantEndOfSaving(happens func(containerd.Container)) {
	r.Helper()
	c := r.ledgerContainer()
	task, out := r.task(c)
	r.awaitLines(out, 2)
	exit, err := task.Wait(r.ctx)
	if err != nil {
		r.Fatal(err)
	}
	half := r.haveHalfSaved(task)
	happens(c)
	r.goOn(half.shim)
	if status := <-exit; status.Error() != nil || status.ExitCode() != 137 {
		r.Errorf("it has exited with %d, %v", status.ExitCode(), status.Error())
	}
	if _, err := task.Delete(r.ctx); err != nil {
		r.Fatal(err)
	}
	r.wantNotSaved(c, half)
	r.wantNothingIn(half.dir)
}

// testSaveContainerdKilled is a save whose client has gone: the task runs on, and
// can be saved for the next one.
func testSaveContainerdKilled(r *rig) {
	c := r.ledgerContainer()
	task, out := r.task(c)
	before := r.awaitLines(out, 2)
	half := r.haveHalfSaved(task)
	if err := r.KillContainerd(); err != nil {
		r.Fatal(err)
	}
	r.goOn(half.shim)
	if err := r.StartContainerd(r.ctx); err != nil {
		r.Fatal(err)
	}
	if err := <-half.saved; err == nil {
		r.Error("a containerd that was killed has said that all was saved")
	}
	// Clients pause what they have saved.
	if err := task.Resume(r.ctx); err != nil {
		r.Fatal(err)
	}
	after := r.awaitLines(out, len(r.parseLedger(out.String()))+2)
	if after[0] != before[0] {
		r.Errorf("%+v has become %+v", before[0], after[0])
	}
	r.wantNothingIn(half.dir)

	dir := r.saveAndEnd(task)
	before = r.parseLedger(out.String())
	_, again := r.task(c, containerd.WithRestoreImagePath(dir))
	r.follows(again, before)
}

// testSaveContainerKilled is that a SIGKILL that comes meanwhile is delivered after:
// the container is saved, and has ended.
func testSaveContainerKilled(r *rig) {
	c := r.ledgerContainer()
	task, out := r.task(c)
	r.awaitLines(out, 2)
	exit, err := task.Wait(r.ctx)
	if err != nil {
		r.Fatal(err)
	}
	half := r.haveHalfSaved(task)
	killed := make(chan error, 1)
	go func() { killed <- task.Kill(r.ctx, unix.SIGKILL) }()
	r.goOn(half.shim)
	if err := errors.Join(<-half.saved, <-killed); err != nil {
		r.Fatal(err)
	}
	if status := <-exit; status.Error() != nil || status.ExitCode() != 137 {
		r.Errorf("it has exited with %d, %v", status.ExitCode(), status.Error())
	}
	if _, err := os.Stat(filepath.Join(half.dir, "sandbox.json")); err != nil {
		r.Error(err)
	}
	if _, err := task.Delete(r.ctx); err != nil {
		r.Fatal(err)
	}
}
