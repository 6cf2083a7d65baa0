//go:build linux || freebsd

package integration

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/lab"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/proc"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/thaw"
)

const (
	parkings = 10
	// parkedFor is long enough for a clock that stood still to be found out.
	parkedFor = 4 * time.Second
	// clockOff is how far a guest's clock may have gone from the host's since it
	// was told the time: where it is emulated it does not keep it well.
	clockOff = 2 * time.Second
)

// testParked stops a machine's process under its container, again and again, and
// has it tell the time right after. Nobody sets its clock, which whoever claims a
// parked machine does: by how long it was stopped it may be behind. Not so after a
// pause of the container: its resumption sets the clock.
func testParked(r *rig) {
	id := r.start(nil)
	machine, err := proc.Identify(r.findMachine(id).Pid)
	if err != nil {
		r.Fatal(err)
	}
	within := func(do func(context.Context) error) {
		r.Helper()
		ctx, cancel := context.WithTimeout(r.ctx, lab.Patience(10*time.Second))
		defer cancel()
		if err := do(ctx); err != nil {
			r.Fatal(err)
		}
	}
	stop := func(d time.Duration) (stood time.Duration) {
		r.Helper()
		stopped := time.Now()
		within(machine.Stop)
		if is, err := machine.Stopped(); err != nil || !is {
			r.Fatalf("stopped, and in the process table: %v, %v", is, err)
		}
		<-time.After(d)
		within(machine.Continue)
		return time.Since(stopped)
	}
	var stood time.Duration
	for i := range parkings {
		d := time.Duration(0)
		if i == parkings-1 {
			d = parkedFor
		}
		stood += stop(d)
		r.Logf("round %d: stood still for %v in all", i, stood.Round(time.Millisecond))
		r.wantClock(id, clockOff+stood, clockOff)
	}
	r.must("task", "pause", id)
	stop(parkedFor)
	r.must("task", "resume", id)
	r.wantClock(id, lab.Patience(thaw.MaxClockError), lab.Patience(thaw.MaxClockError))
}

// wantClock reads a container's clock, and fails the test if it is more than this
// behind or ahead of the host's, whenever it was that it was read.
func (r *rig) wantClock(id string, behind, ahead time.Duration) {
	r.Helper()
	began := time.Now()
	out := r.mustOK(r.exec(id, nil, nil, nil, "/bin/probe", "clock")).Stdout
	ended := time.Now()
	nanoseconds, err := strconv.ParseInt(strings.TrimSpace(out), 10, 64)
	if err != nil {
		r.Fatal(err)
	}
	guest := time.Unix(0, nanoseconds)
	r.Logf("answered after %v; the guest's clock is between %v and %v behind", ended.Sub(began).Round(time.Millisecond),
		began.Sub(guest).Round(time.Millisecond), ended.Sub(guest).Round(time.Millisecond))
	if guest.Before(began.Add(-behind)) || guest.After(ended.Add(ahead)) {
		r.Errorf("the guest says that it is %v, and it was asked from %v to %v", guest, began, ended)
	}
}
