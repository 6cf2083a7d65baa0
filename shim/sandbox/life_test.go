package sandbox

import (
	"context"
	"errors"
	"io"
	"os"
	"testing"
	"time"

	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"go.uber.org/goleak"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/stdio"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestALife(t *testing.T) {
	b := newBed(t)
	out, client := b.output()
	r := b.request("c1")
	r.Stdio = stdio.Config{Stdout: out}
	c := b.create(r)
	if s, _, _ := c.Status(""); s != task.Status_CREATED {
		t.Errorf("status is %v", s)
	}
	if b.Pid() != fakePid {
		t.Errorf("pid is %d", b.Pid())
	}
	waited := b.wait(c, "")
	must(t, c.Start(b.within(), ""))
	if s, _, _ := c.Status(""); s != task.Status_RUNNING {
		t.Errorf("status is %v", s)
	}
	b.exec(c, "x1", stdio.Config{})
	must(t, c.Start(b.within(), "x1"))
	b.agent().exit("c1", "x1", 3)
	b.wantExit(b.wait(c, "x1"), 3)
	if e, err := c.Delete(b.within(), "x1"); err != nil || e.Status != 3 {
		t.Errorf("delete of the exec: %+v, %v", e, err)
	}
	if _, err := c.Wait(b.within(), "x1"); !errdefs.IsNotFound(err) {
		t.Errorf("the exec is still there: %v", err)
	}

	_, err := b.agent().stream("io/c1/init/stdout").Write([]byte("bye"))
	must(t, err)
	b.agent().exit("c1", "", 5)
	b.wantExit(waited, 5)
	if data, err := io.ReadAll(client); err != nil || string(data) != "bye" {
		t.Errorf("read %q, %v", data, err)
	}
	if done, err := b.Shutdown(b.within()); done || err != nil {
		t.Errorf("shut down with a container in it: %v, %v", done, err)
	}
	if e, err := c.Delete(b.within(), ""); err != nil || e.Status != 5 {
		t.Errorf("delete: %+v, %v", e, err)
	}
	if b.agent().hasBundle("c1") {
		t.Error("the guest still has the bundle")
	}
	if done, err := b.Shutdown(b.within()); !done || err != nil {
		t.Errorf("shutdown: %v, %v", done, err)
	}
	noReceipts(t, r.Bundle)
	b.inOrder("create c1", "start c1", "exec added c1/x1", "exec started c1/x1", "exit c1/x1 3", "exit c1 5", "delete c1 5")
	if e, err := ReadExit(r.Bundle); err != nil || e.Status != 5 {
		t.Errorf("exit on record is %+v, %v", e, err)
	}
	if _, err := b.Create(b.within(), b.request("c2")); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("create after shutdown: %v", err)
	}
}

// The exit of init is the last, however long the output of an exec takes.
func TestInitsExitIsPublishedLast(t *testing.T) {
	b := newBed(t)
	c := b.running("c1")
	out, client := b.output()
	b.exec(c, "x1", stdio.Config{Stdout: out})
	must(t, c.Start(b.within(), "x1"))
	a := b.agent()
	end := a.stream("io/c1/exec/x1/stdout")
	initDone, execDone := b.wait(c, ""), b.wait(c, "x1")

	// Both have ended; the exec's output is still on its way.
	a.emitExit("c1", "x1", 1)
	a.emitExit("c1", "", 2)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for range 10 {
		<-tick.C
		if _, err := end.Write([]byte(".")); err != nil {
			t.Fatal(err)
		}
		select {
		case <-initDone:
			t.Fatal("init's exit overtook the exec's output")
		case <-execDone:
			t.Fatal("the exec's exit overtook its output")
		default:
		}
	}
	end.Close()
	b.wantExit(execDone, 1)
	b.wantExit(initDone, 2)
	b.inOrder("exit c1/x1 1", "exit c1 2")
	if data, err := io.ReadAll(client); err != nil || len(data) != 10 {
		t.Errorf("read %q, %v", data, err)
	}
}

// A guest that never reports the exit of an exec cannot hold init's back.
func TestAnExecWhoseExitTheGuestKeeps(t *testing.T) {
	b := newBed(t)
	c := b.running("c1")
	b.exec(c, "x1", stdio.Config{})
	must(t, c.Start(b.within(), "x1"))
	execDone := b.wait(c, "x1")
	b.agent().exit("c1", "", 1)
	b.wantExit(b.wait(c, ""), 1)
	b.wantExit(execDone, exitStatusKilled)
	b.inOrder("exit c1/x1 137", "exit c1 1")
}

// Output that something in the background holds open is waited for, for a
// while, and then the exit is published without its end.
func TestAnExitDoesNotWaitForABackgroundChild(t *testing.T) {
	b := newBed(t)
	out, _ := b.output()
	r := b.request("c1")
	r.Stdio = stdio.Config{Stdout: out}
	c := b.create(r)
	must(t, c.Start(b.within(), ""))
	b.agent().emitExit("c1", "", 0)
	b.wantExit(b.wait(c, ""), 0)
}

func TestAnExitBeforeTheAnswerToStart(t *testing.T) {
	b := newBed(t)
	c := b.create(b.request("c1"))
	a := b.agent()
	a.on("task.Start", func(context.Context) error {
		a.exit("c1", "", 4)
		b.published("exit c1 4")
		return nil
	})
	must(t, c.Start(b.within(), ""))
	if s, e, _ := c.Status(""); s != task.Status_STOPPED || e.Status != 4 {
		t.Errorf("status is %v, exit %+v", s, e)
	}
	b.wantExit(b.wait(c, ""), 4)
}

func TestDeleteOfARunningContainer(t *testing.T) {
	b := newBed(t)
	c := b.running("c1")
	b.agent().on("task.Delete", refusal(errdefs.ErrFailedPrecondition))
	if _, err := c.Delete(b.within(), ""); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("got %v", err)
	}
	if _, err := b.Container("c1"); err != nil {
		t.Errorf("the container is gone: %v", err)
	}
	if s, _, _ := c.Status(""); s != task.Status_RUNNING {
		t.Errorf("status is %v", s)
	}
}

// Whoever waited for a process that is deleted before it ran is not left
// waiting.
func TestDeleteOfAnExecThatNeverRan(t *testing.T) {
	b := newBed(t)
	c := b.running("c1")
	b.exec(c, "x1", stdio.Config{})
	waited := b.wait(c, "x1")
	if _, err := c.Delete(b.within(), "x1"); err != nil {
		t.Fatal(err)
	}
	select {
	case <-waited:
	case <-time.After(patience):
		t.Fatal("Wait did not return")
	}
	if b.count("exit c1/x1 0") != 0 {
		t.Error("an exit was published of a process that never ran")
	}
	// Its id is free again.
	b.exec(c, "x1", stdio.Config{})
}

// A client may not read, and delete all the same: the exit is known by then,
// and is what Delete answers with.
func TestDeleteWithAClientThatDoesNotRead(t *testing.T) {
	b := newBed(t)
	c := b.running("c1")
	out, client := b.output()
	b.exec(c, "x1", stdio.Config{Stdout: out})
	must(t, c.Start(b.within(), "x1"))
	end := b.agent().stream("io/c1/exec/x1/stdout")
	_, err := end.Write(make([]byte, 128<<10))
	must(t, err)
	b.agent().exit("c1", "x1", 6)
	if e, err := c.Delete(b.within(), "x1"); err != nil || e.Status != 6 || e.At.IsZero() {
		t.Errorf("delete: %+v, %v", e, err)
	}
	b.published("exit c1/x1 6")
	client.Close()
}

// The streams of execs that nobody deleted end with their container.
func TestDeleteEndsTheStreamsOfExecs(t *testing.T) {
	b := newBed(t)
	c := b.running("c1")
	out, client := b.output()
	b.exec(c, "x1", stdio.Config{Stdout: out})
	waited := b.wait(c, "x1")
	b.agent().exit("c1", "", 0)
	b.wantExit(b.wait(c, ""), 0)
	_, err := c.Delete(b.within(), "")
	must(t, err)
	ended := make(chan error, 1)
	go func() {
		_, err := io.ReadAll(client)
		ended <- err
	}()
	select {
	case err := <-ended:
		must(t, err)
	case <-time.After(patience):
		t.Error("the exec's FIFO is still open")
	}
	select {
	case <-waited:
	case <-time.After(patience):
		t.Error("the exec's Wait did not return")
	}
}

func TestTwoDeletesAtOnce(t *testing.T) {
	b := newBed(t)
	c := b.running("c1")
	b.agent().exit("c1", "", 0)
	b.wantExit(b.wait(c, ""), 0)
	results := make(chan error, 2)
	for range 2 {
		go func() {
			_, err := c.Delete(b.within(), "")
			results <- err
		}()
	}
	for range 2 {
		if err := <-results; err != nil && !errdefs.IsNotFound(err) {
			t.Error(err)
		}
	}
	b.published("delete c1 0")
	must(t, b.Close(b.within()))
	if n := b.count("delete c1 0"); n != 1 {
		t.Errorf("%d delete events", n)
	}
}

func TestExecsThatFail(t *testing.T) {
	b := newBed(t)
	c := b.running("c1")
	b.exec(c, "taken", stdio.Config{})
	a := b.agent()
	for name, tc := range map[string]struct {
		run  func() error
		kind func(error) bool
	}{
		"id taken":       {func() error { return c.Exec(b.within(), "taken", stdio.Config{}, processSpec()) }, errdefs.IsAlreadyExists},
		"no process":     {func() error { return c.Exec(b.within(), "x1", stdio.Config{}, nil) }, errdefs.IsInvalidArgument},
		"stdio to a URL": {func() error { return c.Exec(b.within(), "x1", stdio.Config{Stdout: "http:///x"}, processSpec()) }, errdefs.IsNotImplemented},
		"no FIFO": {func() error {
			return c.Exec(b.within(), "x1", stdio.Config{Stdout: "/nonexistent/fifo"}, processSpec())
		}, func(err error) bool { return errors.Is(err, os.ErrNotExist) }},
		"guest refuses": {func() error {
			a.on("task.Exec", refusal(errdefs.ErrFailedPrecondition))
			defer a.on("task.Exec", nil)
			return c.Exec(b.within(), "x1", stdio.Config{}, processSpec())
		}, errdefs.IsFailedPrecondition},
		"start of an unknown exec":  {func() error { return c.Start(b.within(), "x1") }, errdefs.IsNotFound},
		"kill of an unknown exec":   {func() error { return c.Kill(b.within(), "x1", 9, false) }, errdefs.IsNotFound},
		"resize of an unknown exec": {func() error { return c.Resize(b.within(), "x1", 1, 1) }, errdefs.IsNotFound},
		"stdin of an unknown exec":  {func() error { return c.CloseStdin("x1") }, errdefs.IsNotFound},
		"delete of an unknown exec": {func() error { _, err := c.Delete(b.within(), "x1"); return err }, errdefs.IsNotFound},
	} {
		if err := tc.run(); err == nil || !tc.kind(err) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	b.exec(c, "x1", stdio.Config{})
}

// Clients look at a container's files from its end on.
func TestFilesAreWrittenBackBeforeTheEndIsKnown(t *testing.T) {
	b := newBed(t)
	c := b.running("c1")
	asked, release := make(chan struct{}), make(chan struct{})
	b.agent().on("shares.WriteBack", func(context.Context) error {
		close(asked)
		<-release
		// A failure is for the log: the end is the end all the same.
		return errdefs.ErrUnavailable
	})
	done := b.wait(c, "")
	b.agent().exit("c1", "", 3)
	<-asked
	select {
	case <-done:
		t.Error("the end is known and the files are not written back")
	default:
	}
	close(release)
	b.wantExit(done, 3)
}
