//go:build linux || freebsd

package integration

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/lab"
)

func testSignals(r *rig) {
	id := r.newID()
	out := newLineWaiter()
	ended := r.background(out, "run", "--rm", "--runtime", r.runtime, lab.Image, id, "/bin/probe", "signals")
	out.waitFor(r, "ready")
	r.must("task", "kill", "--signal", "SIGUSR1", id)
	out.waitFor(r, "user defined signal 1")
	r.must("task", "kill", "--signal", "SIGINT", id)
	out.waitFor(r, "interrupt")
	r.must("task", "kill", "--signal", "SIGTERM", id)
	out.waitFor(r, "terminated")
	if result := <-ended; result.Code != 42 {
		r.Errorf("want the exit code that the process chose on SIGTERM, 42, from\n%s", result)
	}

	// One process of several, by its exec id.
	id = r.start(nil)
	ended = r.background(out, "task", "exec", "--exec-id", "victim", id, "/bin/probe", "signals")
	out.waitFor(r, "ready")
	r.must("task", "kill", "--signal", "SIGUSR2", "--exec-id", "victim", id)
	out.waitFor(r, "user defined signal 2")
	r.must("task", "kill", "--signal", "SIGKILL", "--exec-id", "victim", id)
	if result := <-ended; result.Code != 128+9 {
		r.Errorf("want exit code %d of a killed exec from\n%s", 128+9, result)
	}
	r.expect(r.exec(id, nil, nil, nil, "/bin/echo", "the others live"), 0, "the others live\n")
}

// background runs ctr beside the test. Its result comes when it has ended.
func (r *rig) background(out *lineWaiter, args ...string) <-chan lab.Result {
	r.Helper()
	ctx, cancel := context.WithTimeoutCause(r.ctx, commandTimeout, fmt.Errorf("took longer than %v", commandTimeout))
	cmd := r.Command(ctx, args...)
	cmd.Stdout = out
	ended := make(chan lab.Result, 1)
	go func() {
		defer cancel()
		result, err := r.Complete(cmd)
		if err != nil {
			r.Errorf("%v (%v)\n%s", err, context.Cause(ctx), result)
		}
		ended <- result
	}()
	return ended
}

func testKillAll(r *rig) {
	id := r.newID()
	out := newLineWaiter()
	ended := r.background(out, "run", "--rm", "--runtime", r.runtime, lab.Image, id, "/bin/sh", "-c",
		"trap '' TERM; /bin/probe signals & /bin/sleep 1000 & wait")
	out.waitFor(r, "ready")
	execOut := newLineWaiter()
	execEnded := r.background(execOut, "task", "exec", "--exec-id", "other", id, "/bin/probe", "signals")
	execOut.waitFor(r, "ready")

	r.must("task", "kill", "--all", "--signal", "SIGUSR1", id)
	out.waitFor(r, "user defined signal 1")
	execOut.waitFor(r, "user defined signal 1")
	r.must("task", "kill", "--all", "--signal", "SIGKILL", id)
	for _, ended := range []<-chan lab.Result{ended, execEnded} {
		if result := <-ended; result.Code != 128+9 {
			r.Errorf("want exit code %d from\n%s", 128+9, result)
		}
	}
}

func testInspection(r *rig) {
	id := r.start(nil)
	status, pid := r.taskStatus(id)
	if status != "RUNNING" || pid == "0" {
		r.Errorf("a running task has status %s and pid %s", status, pid)
	}
	if n := r.countProcesses(id); n != 1 {
		r.Errorf("%d processes, want 1", n)
	}
	out := newLineWaiter()
	ended := r.background(out, "task", "exec", "--exec-id", "second", id, "/bin/probe", "signals")
	out.waitFor(r, "ready")
	if n := r.countProcesses(id); n != 2 {
		r.Errorf("%d processes with an exec, want 2", n)
	}
	r.must("task", "kill", "--exec-id", "second", id)
	<-ended
	r.must("task", "kill", id)
	r.waitStatus(id, "STOPPED")
}

// taskStatus is what `ctr task ls` says of a container.
func (r *rig) taskStatus(id string) (status, pid string) {
	r.Helper()
	for line := range strings.Lines(r.must("task", "ls").Stdout) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == id {
			return f[2], f[1]
		}
	}
	return "", ""
}

func (r *rig) waitStatus(id, want string) {
	r.Helper()
	r.eventually(lab.Patience(10*time.Second), func() error {
		if got, _ := r.taskStatus(id); got != want {
			return fmt.Errorf("task %s has status %q, want %q", id, got, want)
		}
		return nil
	})
}

func (r *rig) countProcesses(id string) int {
	r.Helper()
	const headings = 1
	return strings.Count(strings.TrimSpace(r.must("task", "ps", id).Stdout), "\n") + 1 - headings
}

func testDelete(r *rig) {
	id := r.start(nil)
	if result := r.ctr("task", "rm", id); result.Code == 0 {
		r.Errorf("a running task was deleted: %s", result)
	}
	if status, _ := r.taskStatus(id); status != "RUNNING" {
		r.Errorf("after a delete that was refused the task is %q", status)
	}
	r.must("task", "kill", "--signal", "SIGKILL", id)
	r.waitStatus(id, "STOPPED")
	if result := r.ctr("task", "exec", "--exec-id", "late", id, "/bin/true"); result.Code == 0 {
		r.Errorf("exec in a stopped task: %s", result)
	}
	r.must("task", "rm", id)
	if result := r.ctr("task", "rm", id); result.Code == 0 || !strings.Contains(result.Stderr, "not found") {
		r.Errorf("want not found from the second\n%s", result)
	}
	// The same container can be started again, in a new machine.
	r.must("task", "start", "--detach", "--null-io", id)
	r.expect(r.exec(id, nil, nil, nil, "/bin/echo", "again"), 0, "again\n")
}

func testEvents(r *rig) {
	events := r.subscribe()
	id := r.start(nil)
	r.must("task", "exec", "--exec-id", "one", id, "/bin/true")
	r.must("task", "kill", id)
	r.waitStatus(id, "STOPPED")
	r.ctr("task", "rm", id)

	want := []string{
		"/tasks/create " + id,
		"/tasks/start " + id,
		"/tasks/exec-added one",
		"/tasks/exec-started one",
		"/tasks/exit one 0",
		"/tasks/exit " + id + " 42",
		"/tasks/delete " + id + " 42",
	}
	if r.reference() {
		// runc's shim may be gone before its last event is.
		want = want[:len(want)-1]
	}
	for i, w := range want {
		got, err := events.next(r.ctx, id, commandTimeout)
		if err != nil {
			r.Fatalf("event %d, %s: %v", i, w, err)
		}
		if got.String() != w {
			r.Fatalf("event %d is %q, want %q", i, got, w)
		}
	}
}

func testShimKilled(r *rig) {
	events := r.subscribe()
	id := r.start(nil)
	shim := r.findProcess("containerd-shim-", id)
	if err := shim.Kill(); err != nil {
		r.Fatal(err)
	}
	r.wantDeath(events, id)
}

// deathNotice is how soon containerd has to know that a sandbox is dead.
var deathNotice = lab.Patience(5 * time.Second)

// wantDeath fails the test unless containerd hears of the end of a task, other
// than by its own will, in time.
func (r *rig) wantDeath(events *subscription, id string) {
	r.Helper()
	limit := time.Now().Add(deathNotice)
	for {
		e, err := events.next(r.ctx, id, time.Until(limit))
		if err != nil {
			r.Fatalf("no exit of %s within %v: %v", id, deathNotice, err)
		}
		if e.topic != "/tasks/exit" || e.process != id {
			continue
		}
		if e.status == 0 {
			r.Errorf("a killed task has exit code 0")
		}
		return
	}
}

// findProcess is the process whose program's name starts with prefix and that
// has id as an argument, or as a word of one.
func (r *rig) findProcess(prefix, id string) lab.Process {
	r.Helper()
	all, err := lab.Processes()
	if err != nil {
		r.Fatal(err)
	}
	for _, p := range all {
		name := p.Args[0][strings.LastIndex(p.Args[0], "/")+1:]
		if strings.HasPrefix(name, prefix) && hasWord(p.Args[1:], id) {
			return p
		}
	}
	r.Fatalf("no process %s* of %s in %v", prefix, id, all)
	return lab.Process{}
}

func hasWord(args []string, word string) bool {
	for _, arg := range args {
		for _, w := range strings.FieldsFunc(arg, func(c rune) bool { return strings.ContainsRune(",=/:. ", c) }) {
			if w == word {
				return true
			}
		}
	}
	return false
}

func testContainerdRestarted(r *rig) {
	id := r.start(nil)
	for _, end := range []func() error{
		func() error { return r.StopContainerd(r.ctx) },
		r.KillContainerd,
	} {
		if err := errors.Join(end(), r.StartContainerd(r.ctx)); err != nil {
			r.Fatal(err)
		}
		if status, _ := r.taskStatus(id); status != "RUNNING" {
			r.Fatalf("after containerd's restart the task is %q", status)
		}
		r.expect(r.exec(id, nil, nil, nil, "/bin/echo", "still here"), 0, "still here\n")
	}
	events := r.subscribe()
	r.must("task", "kill", id)
	r.waitStatus(id, "STOPPED")
	if e, err := events.next(r.ctx, id, commandTimeout); err != nil || e.topic != "/tasks/exit" || e.status != 42 {
		r.Errorf("got event %q, %v; want the exit with status 42", e, err)
	}
}
