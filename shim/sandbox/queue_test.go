package sandbox

import (
	"context"
	"fmt"
	"slices"
	"testing"

	apievents "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/errdefs"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/stdio"
)

// An event that containerd does not take at once is neither lost nor overtaken.
func TestEventsKeepTheirOrderOverARestartOfContainerd(t *testing.T) {
	tries := map[string]int{}
	p := &publisher{refuse: func(e events.Event) error {
		name := describe(e)
		tries[name]++
		switch {
		case name == "oom c3":
			return fmt.Errorf("no such topic: %w", errdefs.ErrInvalidArgument)
		case name != "oom c4" && tries[name] < 3:
			return fmt.Errorf("connection refused: %w", errdefs.ErrUnavailable)
		}
		return nil
	}}
	q := newEventQueue(context.Background(), p)
	for i := range 5 {
		q.send(&apievents.TaskOOM{ContainerID: fmt.Sprint("c", i)})
	}
	must(t, q.close(t.Context()))
	if want := []string{"oom c0", "oom c1", "oom c2", "oom c4"}; !slices.Equal(p.names(), want) {
		t.Errorf("published %q, want %q", p.names(), want)
	}
	if tries["oom c3"] != 1 {
		t.Errorf("an event that was refused for good was tried %d times", tries["oom c3"])
	}
}

// While containerd is away, the guest's events wait on the host: a stream that
// nobody reads would look like the end of the agent.
func TestContainerdIsAwayForLong(t *testing.T) {
	const execs = 1000
	b := newBed(t)
	c := b.running("c1")
	b.published("start c1")
	release := b.events.hold()
	names := make([]string, execs)
	for i := range execs {
		names[i] = fmt.Sprint("x", i)
		b.exec(c, names[i], stdio.Config{})
		must(t, c.Start(b.within(), names[i]))
		b.agent().exit("c1", names[i], 0)
	}
	for _, n := range names {
		b.wantExit(b.wait(c, n), 0)
	}
	b.agent().exit("c1", "", 7)
	b.wantExit(b.wait(c, ""), 7)
	release()
	b.published("exit c1 7")
	if b.machineNow().wasDestroyed() {
		t.Error("the machine was ended")
	}
	all := b.events.names()
	// create, start, three of each exec, and init's exit at the end.
	if len(all) != 2+3*execs+1 || all[len(all)-1] != "exit c1 7" {
		t.Errorf("%d events were published, the last is %q", len(all), all[len(all)-1])
	}
	order := map[string]int{}
	for i, e := range all {
		order[e] = i
	}
	for _, n := range names {
		if a, s, x := order["exec added c1/"+n], order["exec started c1/"+n], order["exit c1/"+n+" 0"]; a == 0 || a > s || s > x {
			t.Errorf("%s: added at %d, started at %d, ended at %d", n, a, s, x)
		}
	}
}

// A guest cannot fill the host's memory with events.
func TestAGuestThatFloodsTheHostWithEvents(t *testing.T) {
	const limit = 100
	b := newBed(t)
	b.Sandbox.events.limit = limit
	c := b.running("c1")
	b.published("start c1")
	release := b.events.hold()
	for range limit + 2 {
		b.Sandbox.events.send(&apievents.TaskOOM{ContainerID: "c1"})
	}
	b.agent().emit(&apievents.TaskOOM{ContainerID: "c1"})
	b.eventually("the machine is destroyed", b.machineNow().wasDestroyed)
	release()
	b.wantExit(b.wait(c, ""), exitStatusKilled)
	b.published("exit c1 137")
}
