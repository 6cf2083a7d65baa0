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
	obtain  source
	backend hypervisor.Backend
	// killUnanswered and killUnreported are the constants, but for tests.
	killUnanswered, killUnreported time.Duration

	mu         sync.Mutex
	state      state
	home       *home // from the first attempt to boot on
	vm         *vm
	booted     chan struct{} // closed when stateCreating ends
	stopBoot   context.CancelCauseFunc
	containers map[string]*Container
	declared   *declared // nil for a sandbox that is its first container's
	created    time.Time // of the machine
	exit       Exit
	ended      chan struct{} // closed when exit is final
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
		ended:      make(chan struct{}),

		backend:        backend,
		killUnanswered: killUnanswered,
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
			if s.declared != nil && r.pod == nil {
				defer s.mu.Unlock()
				return nil, fmt.Errorf("sandbox %s has not been started: %w", s.declared.pod.ID, errdefs.ErrFailedPrecondition)
			}
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
	if r.saved != nil {
		return boot(ctx, fromSaved(s.backend, r.saved), r, h)
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
	s.created = time.Now()
	return nil
}
