package sandbox

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/log"
	"github.com/containerd/ttrpc"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/config"
)

// doze lets a machine whose containers are all paused stop as well. Whoever wants
// something of its guest wakes it, and it stays awake until the next pause: what
// was asked for, a signal for instance, may take effect after the answer.
type doze struct {
	machine hypervisor.Machine
	mode    config.PauseMode
	// turn is held by whoever parks or unparks, and by who is about to ask.
	turn chan struct{}
	// asking counts the requests under way.
	asking atomic.Int32
	// parked is guarded by turn.
	parked bool
}

// restTimeout bounds the stop of a machine and the writing of its memory.
const restTimeout = 20 * time.Second

func newDoze(m hypervisor.Machine, mode config.PauseMode) *doze {
	return &doze{machine: m, mode: mode, turn: make(chan struct{}, 1)}
}

func (d *doze) take(ctx context.Context) error {
	select {
	case d.turn <- struct{}{}:
		return nil
	case <-d.machine.Done():
		return hypervisor.ErrExited
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// wake has the machine run for as long as the caller has something to ask of it,
// which ends with done.
func (d *doze) wake(ctx context.Context) (done func(), err error) {
	if err := d.take(ctx); err != nil {
		return nil, fmt.Errorf("wake machine %s: %w", d.machine.ID(), err)
	}
	defer func() { <-d.turn }()
	if d.parked {
		if err := d.machine.(hypervisor.Parker).Unpark(ctx); err != nil {
			return nil, err
		}
		d.parked = false
	}
	d.asking.Add(1)
	return func() { d.asking.Add(-1) }, nil
}

// rest parks the machine unless somebody asks something of it, and gives its
// memory back where that is wanted and can be done.
func (d *doze) rest(ctx context.Context) error {
	parker, ok := d.machine.(hypervisor.Parker)
	if !ok || d.mode != config.PauseMachine && d.mode != config.PauseMemory {
		return nil
	}
	if err := d.take(ctx); err != nil {
		return err
	}
	defer func() { <-d.turn }()
	if d.parked || d.asking.Load() > 0 {
		return nil
	}
	if err := parker.Park(ctx); err != nil {
		return err
	}
	d.parked = true
	if r, ok := d.machine.(hypervisor.Reclaimable); ok && d.mode == config.PauseMemory {
		return r.Reclaim(ctx)
	}
	return nil
}

// intercept is for a client of the machine's agent: every request wakes it.
func (d *doze) intercept(ctx context.Context, req *ttrpc.Request, resp *ttrpc.Response, _ *ttrpc.UnaryClientInfo, invoke ttrpc.Invoker) error {
	done, err := d.wake(ctx)
	if err != nil {
		return err
	}
	defer done()
	return invoke(ctx, req, resp)
}

// restIfPaused lets the machine rest if no container of it runs. That it cannot is
// no reason for a pause to fail.
func (s *Sandbox) restIfPaused(ctx context.Context, v *vm) {
	s.mu.Lock()
	containers := make([]*Container, 0, len(s.containers))
	for _, c := range s.containers {
		containers = append(containers, c)
	}
	s.mu.Unlock()
	for _, c := range containers {
		p, err := c.process("")
		if err != nil {
			return
		}
		if status, _ := p.snapshot(); status != task.Status_PAUSED && status != task.Status_STOPPED {
			return
		}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, restTimeout, fmt.Errorf("not done after %s: %w", restTimeout, context.DeadlineExceeded))
	defer cancel()
	if err := v.doze.rest(ctx); err != nil {
		log.G(ctx).WithError(err).WithField("machine", v.ID()).Warn("a machine whose containers are paused does not rest as it should")
	}
}
