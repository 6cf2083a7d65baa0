package sandbox

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	agentv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto/v1"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/config"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/stdio"
)

// code is the gRPC code that a client would see.
func code(err error) codes.Code { return status.Code(errgrpc.ToGRPC(err)) }

func TestTheMachineDiesUnderRunningProcesses(t *testing.T) {
	b := newBed(t)
	r := b.request("c1")
	out, client := b.output()
	r.Stdio = stdio.Config{Stdout: out}
	c := b.create(r)
	must(t, c.Start(b.within(), ""))
	for _, x := range []string{"x1", "x2", "created"} {
		b.exec(c, x, stdio.Config{})
	}
	must(t, c.Start(b.within(), "x1"))
	must(t, c.Start(b.within(), "x2"))
	var waiters []<-chan string
	for _, p := range []string{"", "x1", "x2", "created"} {
		waiters = append(waiters, b.wait(c, p))
	}
	_, err := b.agent().stream("io/c1/init/stdout").Write([]byte("last words"))
	must(t, err)

	b.machineNow().die(hypervisor.ExitKilled)
	for _, w := range waiters {
		b.wantExit(w, exitStatusKilled)
	}
	buf := make([]byte, 64)
	if n, err := client.Read(buf); err != nil || string(buf[:n]) != "last words" {
		t.Errorf("read %q, %v", buf[:n], err)
	}
	b.inOrder("exit c1/x1 137", "exit c1 137")
	b.inOrder("exit c1/x2 137", "exit c1 137")
	if b.count("exit c1/created 137") != 0 {
		t.Error("an exit was published of a process that never ran")
	}

	if s, e, err := c.Status(""); s != task.Status_STOPPED || e.Status != exitStatusKilled || err != nil {
		t.Errorf("status %v, exit %+v, %v", s, e, err)
	}
	if err := c.Kill(b.within(), "", 15, false); !errdefs.IsNotFound(err) {
		t.Errorf("kill in a dead machine: %v, want NotFound", err)
	}
	for what, err := range map[string]error{
		"pause":             c.Pause(b.within()),
		"resume":            c.Resume(b.within()),
		"stats":             func() error { _, err := c.Stats(b.within()); return err }(),
		"start":             c.Start(b.within(), "created"),
		"exec":              c.Exec(b.within(), "x3", stdio.Config{}, processSpec()),
		"exec with streams": c.Exec(b.within(), "x4", stdio.Config{Stdout: out}, processSpec()),
		"resize":            c.Resize(b.within(), "", 80, 25),
		"pids":              func() error { _, err := c.Pids(b.within()); return err }(),
	} {
		if c := code(err); c != codes.Unavailable {
			t.Errorf("%s in a dead machine: %v, want Unavailable", what, err)
		}
	}
	if _, err := b.Create(b.within(), b.request("c2")); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("create in a dead machine: %v", err)
	}

	for _, p := range []string{"created", "x1", ""} {
		if e, err := c.Delete(b.within(), p); err != nil || e.Status != exitStatusKilled {
			t.Errorf("delete of %q: %+v, %v", p, e, err)
		}
	}
	b.published("delete c1 137")
	if done, err := b.Shutdown(b.within()); !done || err != nil {
		t.Errorf("shutdown: %v, %v", done, err)
	}
	noReceipts(t, r.Bundle)
}

func TestTheMachineDiesDuringCreate(t *testing.T) {
	for _, step := range []string{"bundle.Create", "stream io/c1/init/stdout", "task.Create"} {
		t.Run(step, func(t *testing.T) {
			b := newBed(t)
			r := b.request("c1")
			r.Stdio.Stdout, _ = b.output()
			b.backend.furnish = func(a *fakeAgent) {
				a.on(step, func(ctx context.Context) error {
					b.eventually("launched", func() bool { return len(b.backend.launched()) == 1 })
					b.machineNow().die(hypervisor.ExitReset)
					return silence(ctx)
				})
			}
			began := time.Now()
			_, err := b.Create(b.within(), r)
			if c := code(err); c == codes.OK || c == codes.Unknown || c == codes.DeadlineExceeded {
				t.Fatalf("got %v", err)
			}
			if took := time.Since(began); took > patience/2 {
				t.Errorf("took %v to notice", took)
			}
			if _, err := b.Container("c1"); !errdefs.IsNotFound(err) {
				t.Errorf("the container is there: %v", err)
			}
			if done, err := b.Shutdown(b.within()); !done || err != nil {
				t.Errorf("shutdown: %v, %v", done, err)
			}
			noReceipts(t, r.Bundle)
		})
	}
}

func TestSIGKILLThatTheGuestDoesNotAnswer(t *testing.T) {
	t.Run("ends the machine", func(t *testing.T) {
		b := newBed(t)
		b.cfg.Machine.AgentTimeout = config.Duration{Duration: 300 * time.Millisecond}
		c := b.running("c1")
		waited := b.wait(c, "")
		b.agent().on("task.Kill", silence)
		if err := c.Kill(b.within(), "", 9, true); err != nil {
			t.Errorf("kill: %v", err)
		}
		b.wantExit(waited, exitStatusKilled)
		if !b.machineNow().wasDestroyed() {
			t.Error("the machine lives on")
		}
	})
	for name, kill := range map[string]func(*bed, *Container) error{
		"another signal":  func(b *bed, c *Container) error { return c.Kill(b.within(), "", 15, false) },
		"SIGKILL an exec": func(b *bed, c *Container) error { return c.Kill(b.within(), "x1", 9, false) },
		"a caller without patience": func(b *bed, c *Container) error {
			ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
			defer cancel()
			return c.Kill(ctx, "", 9, true)
		},
	} {
		t.Run("not for "+name, func(t *testing.T) {
			b := newBed(t)
			b.cfg.Machine.AgentTimeout = config.Duration{Duration: 300 * time.Millisecond}
			c := b.running("c1")
			b.exec(c, "x1", stdio.Config{})
			b.agent().on("task.Kill", silence)
			if err := kill(b, c); !errdefs.IsDeadlineExceeded(err) {
				t.Errorf("got %v, want DeadlineExceeded", err)
			}
			if b.machineNow().wasDestroyed() {
				t.Error("the machine was ended")
			}
		})
	}
}

// What a hostile guest may send and get away with: nothing but its own events
// reach containerd, and the sandbox goes on.
func TestEventsOutOfPlaceAreDropped(t *testing.T) {
	b := newBed(t)
	c := b.running("c1")
	b.exec(c, "x1", stdio.Config{})
	a := b.agent()
	a.emit(&apievents.TaskExit{ContainerID: "other", ID: "other", ExitStatus: 1})
	a.emit(&apievents.TaskStart{ContainerID: "other"})
	a.emit(&apievents.TaskOOM{ContainerID: "../c1"})
	a.emit(&apievents.TaskExit{ContainerID: "c1", ID: "unknown", ExitStatus: 1})
	a.emit(&apievents.TaskExit{})
	a.emit(&apievents.TaskExecStarted{ContainerID: "c1", ExecID: "unknown"})
	a.emit(&apievents.TaskDelete{ContainerID: "c1", ExitStatus: 1})
	a.emit(&apievents.TaskIO{})
	a.emit(&apievents.TaskCheckpointed{ContainerID: "c1"})
	a.emit(&apievents.ImageCreate{Name: "evil"})
	a.emit(&apievents.NamespaceDelete{Name: "test"})
	a.emit(&apievents.ContainerDelete{ID: "c1"})
	// What has been, and is no more.
	a.emit(&apievents.TaskCreate{ContainerID: "c1"})
	a.emit(&apievents.TaskStart{ContainerID: "c1"})
	a.emit(&apievents.TaskExecAdded{ContainerID: "c1", ExecID: "x1"})
	raw := func(e *anypb.Any) {
		a.emitRaw(func(seq uint64) *agentv1.Envelope { return &agentv1.Envelope{Sequence: seq, Event: e} })
	}
	raw(&anypb.Any{})
	raw(&anypb.Any{TypeUrl: "no.such.Type", Value: []byte{1, 2, 3}})
	raw(&anypb.Any{TypeUrl: "containerd.events.TaskExit", Value: []byte{0xff}})
	// Without a time, and again and again.
	a.emit(&apievents.TaskExit{ContainerID: "c1", ID: "c1", ExitStatus: 9})
	a.emit(&apievents.TaskExit{ContainerID: "c1", ID: "c1", ExitStatus: 8})
	a.emit(&apievents.TaskOOM{ContainerID: "c1"})
	b.published("oom c1")
	b.published("exit c1 9")
	b.wantExit(b.wait(c, ""), 9)
	want := map[string]bool{"create c1": true, "start c1": true, "exec added c1/x1": true, "oom c1": true, "exit c1 9": true}
	for _, e := range b.events.names() {
		if !want[e] {
			t.Errorf("the guest made the host publish %q, or again", e)
		}
		delete(want, e)
	}
	if b.machineNow().wasDestroyed() {
		t.Error("the machine was ended")
	}
}

// A guest does not fill the host's log.
func TestNonsenseIsLoggedNowAndThen(t *testing.T) {
	b := newBed(t)
	b.running("c1")
	hooks := log.L.Logger.ReplaceHooks(logrus.LevelHooks{})
	t.Cleanup(func() { log.L.Logger.ReplaceHooks(hooks) })
	hook := logtest.NewLocal(log.L.Logger)
	for range 50 {
		b.agent().emit(&apievents.TaskOOM{ContainerID: "nobody's"})
	}
	b.agent().emit(&apievents.TaskOOM{ContainerID: "c1"})
	b.published("oom c1")
	lines := 0
	for _, e := range hook.AllEntries() {
		if err, ok := e.Data[logrus.ErrorKey].(error); ok && strings.Contains(err.Error(), "nobody's") {
			lines++
		}
	}
	if lines == 0 || lines > complaintsAtOnce {
		t.Errorf("%d lines, want some and at most %d", lines, complaintsAtOnce)
	}
}

// A stream of events that cannot be trusted any more is the end of the agent,
// and so of its machine.
func TestALostEventStreamEndsTheMachine(t *testing.T) {
	for name, lose := range map[string]func(*fakeAgent){
		"a gap": func(a *fakeAgent) {
			a.emitRaw(func(seq uint64) *agentv1.Envelope { return &agentv1.Envelope{Sequence: seq + 1} })
		},
		"the same again": func(a *fakeAgent) {
			a.emitRaw(func(uint64) *agentv1.Envelope { return &agentv1.Envelope{Sequence: 1} })
		},
		"no event": func(a *fakeAgent) {
			a.emitRaw(func(seq uint64) *agentv1.Envelope { return &agentv1.Envelope{Sequence: seq} })
		},
		"an error": func(a *fakeAgent) {
			a.on("events.Subscribe", refusal(errdefs.ErrUnavailable))
			a.emit(&apievents.TaskOOM{ContainerID: "c1"})
		},
		"the connection": func(a *fakeAgent) { a.cut() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t)
			c := b.running("c1")
			waited := b.wait(c, "")
			lose(b.agent())
			b.wantExit(waited, exitStatusKilled)
			b.eventually("the machine is destroyed", b.machineNow().wasDestroyed)
			if e, err := c.Delete(b.within(), ""); err != nil || e.Status != exitStatusKilled {
				t.Errorf("delete: %+v, %v", e, err)
			}
		})
	}
}

func TestAnAgentThatDoesNotTakeAStream(t *testing.T) {
	b := newBed(t)
	b.cfg.Machine.AgentTimeout = config.Duration{Duration: 200 * time.Millisecond}
	c := b.running("c1")
	b.agent().on("stream io/c1/exec/x1/stdout", silence)
	out, _ := b.output()
	if err := c.Exec(b.within(), "x1", stdio.Config{Stdout: out}, processSpec()); !errdefs.IsDeadlineExceeded(err) {
		t.Errorf("got %v, want DeadlineExceeded", err)
	}
	b.exec(c, "x1", stdio.Config{})
}

// An agent that is slow is not an agent that is gone.
func TestAnAgentThatDoesNotAnswerInTime(t *testing.T) {
	b := newBed(t)
	b.cfg.Machine.AgentTimeout = config.Duration{Duration: 100 * time.Millisecond}
	c := b.create(b.request("c1"))
	b.agent().on("task.Start", silence)
	err := c.Start(b.within(), "")
	if !errdefs.IsDeadlineExceeded(err) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want DeadlineExceeded", err)
	}
	if b.machineNow().wasDestroyed() {
		t.Error("the machine was ended")
	}
}
