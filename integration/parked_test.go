//go:build linux || freebsd

package integration

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/lab"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/proc"
)

const (
	parkings = 10
	// parkedFor is long enough for a clock that stood still to be found out.
	parkedFor = 4 * time.Second
	// clockOff is how far a guest's clock may be from the host's: it was told the
	// time at boot, in whole seconds.
	clockOff = 2 * time.Second
)

// testParked stops a machine's process under its container, again and again, and
// has it tell the time right after. Nobody sets its clock, which whoever claims a
// parked machine does: by how long it was stopped it may be behind.
func testParked(r *rig) {
	id := r.start(nil)
	machine, err := proc.Identify(r.findMachine(id).Pid)
	if err != nil {
		r.Fatal(err)
	}
	var stood time.Duration
	within := func(do func(context.Context) error) {
		r.Helper()
		ctx, cancel := context.WithTimeout(r.ctx, lab.Patience(10*time.Second))
		defer cancel()
		if err := do(ctx); err != nil {
			r.Fatal(err)
		}
	}
	for i := range parkings {
		stopped := time.Now()
		within(machine.Stop)
		if is, err := machine.Stopped(); err != nil || !is {
			r.Fatalf("round %d: stopped, and in the process table: %v, %v", i, is, err)
		}
		if i == parkings-1 {
			<-time.After(parkedFor)
		}
		within(machine.Continue)
		began := time.Now()
		stood += began.Sub(stopped)
		out := r.mustOK(r.exec(id, nil, nil, nil, "/bin/date", "+%s")).Stdout
		ended := time.Now()
		seconds, err := strconv.ParseInt(strings.TrimSpace(out), 10, 64)
		if err != nil {
			r.Fatal(err)
		}
		guest := time.Unix(seconds, 0)
		r.Logf("round %d: stood still for %v in all, answered after %v; the guest's clock is between %v and %v behind", i,
			stood.Round(time.Millisecond), ended.Sub(began).Round(time.Millisecond),
			began.Sub(guest).Round(time.Millisecond), ended.Sub(guest).Round(time.Millisecond))
		if guest.Before(began.Add(-clockOff-stood)) || guest.After(ended.Add(clockOff)) {
			r.Errorf("round %d: the guest says that it is %v, and it was asked from %v to %v", i, guest, began, ended)
		}
	}
}
