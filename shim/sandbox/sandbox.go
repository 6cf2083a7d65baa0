// Package sandbox is one sandbox: a virtual machine, the containers in it, and
// what of the host belongs to them. It knows containerd's types but no RPC: the
// Task service above it translates requests into calls, the agent below it
// runs the containers.
package sandbox

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
)

// state is where a sandbox is in its life. It only ever moves down this list,
// but for a boot that failed, after which another may be tried.
type state int

const (
	stateNew state = iota
	stateCreating
	stateRunning
	stateStopping
	stateStopped
)

func (s state) String() string {
	return [...]string{"new", "creating", "running", "stopping", "stopped"}[s]
}

// Sandbox is one virtual machine and its containers. The machine boots with
// the first container, or when the Sandbox API asks for it. Methods are safe for
// concurrent use, and none holds a lock while it waits for the guest.
type Sandbox struct {
	// ctx carries namespace and logger for what outlives a request.
	ctx      context.Context
	stateDir string
	events   *eventQueue
	// obtain is where machines come from.
	obtain source
	// killUnreported is the constant, but for tests.
	killUnreported time.Duration

	mu         sync.Mutex
	state      state
	home       *home // from the first attempt to boot on
	vm         *vm
	booted     chan struct{} // closed when stateCreating ends
	stopBoot   context.CancelCauseFunc
	containers map[string]*Container
}

// New returns a sandbox without a machine. ctx carries the namespace and the
// logger; its end means nothing. Events go to publisher in order. What has to
// be found by others on this host is kept below stateDir (DefaultStateDir).
func New(ctx context.Context, backend hypervisor.Backend, publisher events.Publisher, stateDir string) *Sandbox {
	ctx = context.WithoutCancel(ctx)
	return &Sandbox{
		ctx:        ctx,
		stateDir:   stateDir,
		events:     newEventQueue(ctx, publisher),
		obtain:     poolOrBoot(backend),
		containers: map[string]*Container{},

		killUnreported: killUnreported,
	}
}

// Container returns the container with this id, or errdefs.ErrNotFound. One
// that is still being created is not found.
func (s *Sandbox) Container(id string) (*Container, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.containers[id]
	if c == nil || !c.ready {
		return nil, errNoProcess(id, "")
	}
	return c, nil
}

// admit makes a container visible, unless the machine has ended meanwhile.
func (s *Sandbox) admit(c *Container) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state != stateRunning {
		return fmt.Errorf("container %s: sandbox is %s: %w", c.ID, s.state, errdefs.ErrFailedPrecondition)
	}
	c.ready = true
	return nil
}

// Pid is the host process of the machine, or 0 if there is none.
func (s *Sandbox) Pid() uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.vm == nil {
		return 0
	}
	return uint32(s.vm.Pid())
}

// reserve takes an id before any work is done for it.
func (s *Sandbox) reserve(c *Container) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, taken := s.containers[c.ID]; taken {
		return fmt.Errorf("container %s: %w", c.ID, errdefs.ErrAlreadyExists)
	}
	s.containers[c.ID] = c
	return nil
}

// forget gives the id free, and reports whether it was still c's.
func (s *Sandbox) forget(c *Container) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.containers[c.ID] != c {
		return false
	}
	delete(s.containers, c.ID)
	return true
}

// machine returns the sandbox's machine, and boots it for the first caller.
// Others wait for that boot.
func (s *Sandbox) machine(ctx context.Context, r machineRequest) (*vm, error) {
	for {
		s.mu.Lock()
		switch s.state {
		case stateRunning:
			defer s.mu.Unlock()
			return s.vm, nil
		case stateStopping, stateStopped:
			defer s.mu.Unlock()
			return nil, fmt.Errorf("sandbox is %s: %w", s.state, errdefs.ErrFailedPrecondition)
		case stateCreating:
			booted := s.booted
			s.mu.Unlock()
			select {
			case <-booted:
				continue
			case <-ctx.Done():
				return nil, fmt.Errorf("wait for the machine to boot: %w", context.Cause(ctx))
			}
		case stateNew:
			ctx, cancel := context.WithCancelCause(ctx)
			defer cancel(nil)
			s.state = stateCreating
			s.booted = make(chan struct{})
			s.stopBoot = cancel
			s.mu.Unlock()
			return s.boot(ctx, r)
		}
	}
}

func (s *Sandbox) boot(ctx context.Context, r machineRequest) (*vm, error) {
	v, err := s.bootAtHome(ctx, r)
	defer close(s.booted)
	if err := s.adopt(v, err); err != nil {
		if v != nil {
			err = errors.Join(err, v.destroy(ctx))
		}
		return nil, err
	}
	go s.watchEvents(v)
	go s.watchMachine(v)
	return v, nil
}

// bootAtHome boots the machine in the sandbox's home, which it makes for the
// first attempt.
func (s *Sandbox) bootAtHome(ctx context.Context, r machineRequest) (*vm, error) {
	s.mu.Lock()
	h := s.home
	s.mu.Unlock()
	if h == nil {
		var err error
		if h, err = openHome(ctx, s.stateDir, r.id, r.bundle); err != nil {
			return nil, err
		}
		s.mu.Lock()
		s.home = h
		s.mu.Unlock()
	}
	if err := h.join(r.member, r.bundle); err != nil {
		return nil, err
	}
	return boot(ctx, s.obtain, r, h)
}

// adopt ends stateCreating with what the boot came to. A sandbox that was
// closed meanwhile takes no machine.
func (s *Sandbox) adopt(v *vm, err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state != stateCreating {
		return errors.Join(err, fmt.Errorf("sandbox is %s: %w", s.state, errdefs.ErrFailedPrecondition))
	}
	if err != nil {
		s.state = stateNew
		return err
	}
	s.vm = v
	s.state = stateRunning
	return nil
}

// watchMachine waits for the machine's end, expected or not, and makes it the
// end of everything in it.
func (s *Sandbox) watchMachine(v *vm) {
	<-v.Done()
	exit := v.Exit()

	s.mu.Lock()
	expected := s.state != stateRunning
	s.state = stateStopped
	containers := make([]*Container, 0, len(s.containers))
	for _, c := range s.containers {
		// The Create of one that is not ready fails by itself.
		if c.ready {
			containers = append(containers, c)
		}
	}
	s.mu.Unlock()

	l := log.G(s.ctx).WithFields(log.Fields{"machine": v.ID(), "reason": string(exit.Reason), "detail": exit.Detail})
	if expected {
		l.Debug("machine has ended")
	} else {
		l.WithField("console", string(tail(v.ConsoleTail(), 2048))).Error("machine died under its containers")
	}
	// Whoever waits for an answer of the agent gets an error now.
	v.agent.close()
	for _, c := range containers {
		c.machineDied(exit.At)
	}
}

func tail(b []byte, n int) []byte {
	return b[max(0, len(b)-n):]
}

// errClosing is why a boot was given up.
var errClosing = fmt.Errorf("the sandbox is being closed: %w", context.Canceled)

// beginStop moves to stateStopping, in which nothing begins, and gives up a boot
// that is under way: its machine is destroyed or not there once the result, if
// there is one, is closed. The caller holds mu.
func (s *Sandbox) beginStop() (booted <-chan struct{}) {
	if s.state == stateCreating {
		booted = s.booted
		s.stopBoot(errClosing)
	}
	if s.state < stateStopping {
		s.state = stateStopping
	}
	return booted
}

// Shutdown ends the machine if no container is left, and reports whether it
// did. The guest is asked to power off first; a guest that does not is ended by
// force.
//
// A container that is still being created does not count: containerd asks
// after it has given up on it, and does not ask again.
func (s *Sandbox) Shutdown(ctx context.Context) (bool, error) {
	s.mu.Lock()
	for _, c := range s.containers {
		if c.ready {
			s.mu.Unlock()
			return false, nil
		}
	}
	booted := s.beginStop()
	s.mu.Unlock()
	return true, s.stop(ctx, booted)
}

// Close ends everything, containers included. It is for a shim that must go,
// whatever runs.
func (s *Sandbox) Close(ctx context.Context) error {
	s.mu.Lock()
	booted := s.beginStop()
	containers := make([]*Container, 0, len(s.containers))
	for _, c := range s.containers {
		containers = append(containers, c)
	}
	s.mu.Unlock()

	errs := []error{s.stop(ctx, booted)}
	for _, c := range containers {
		errs = append(errs, c.release(ctx))
	}
	errs = append(errs, s.leaveHome(ctx))
	for _, c := range containers {
		c.awaitExit(ctx)
	}
	errs = append(errs, s.events.close(ctx))
	return errors.Join(errs...)
}

// stop ends the machine, after the end of a boot that beginStop has given up.
func (s *Sandbox) stop(ctx context.Context, booted <-chan struct{}) error {
	if booted != nil {
		select {
		case <-booted:
		case <-ctx.Done():
		}
	}
	s.mu.Lock()
	v := s.vm
	s.mu.Unlock()
	if v == nil {
		return nil
	}
	v.powerOff(ctx)
	return v.destroy(ctx)
}

// leaveHome is the end of all that the sandbox keeps on the host for itself.
func (s *Sandbox) leaveHome(ctx context.Context) error {
	s.mu.Lock()
	h := s.home
	s.home = nil
	s.mu.Unlock()
	if h == nil {
		return nil
	}
	return h.close(ctx)
}
