package process

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
)

// Machine is what of hypervisor.Machine follows from a machine being a process
// with a link. A backend's machine embeds it, and adds how it is powered off
// and what is released.
type Machine struct {
	id string
	// Process is the monitor.
	Process *Process
	// Link reaches the guest. It is set before the machine is given away.
	Link interface {
		Dial(ctx context.Context, port uint32) (net.Conn, error)
		Close() error
	}

	// done is closed by End, after exit has been set.
	done chan struct{}
	exit hypervisor.Exit
	// releasing is held by the one Release that is under way.
	releasing chan struct{}
	// turn is held by the one Park or Unpark that is under way.
	turn chan struct{}
	// disowned is true once the machine is somebody else's.
	disowned atomic.Bool
}

var _ hypervisor.Parker = (*Machine)(nil)

// NewMachine returns the common part of the machine id, whose process is p.
func NewMachine(id string, p *Process) *Machine {
	return &Machine{id: id, Process: p, done: make(chan struct{}), releasing: make(chan struct{}, 1), turn: make(chan struct{}, 1)}
}

// ID implements hypervisor.Machine.
func (m *Machine) ID() string { return m.id }

// Pid implements hypervisor.Machine.
func (m *Machine) Pid() int { return m.Process.Pid() }

// Done implements hypervisor.Machine.
func (m *Machine) Done() <-chan struct{} { return m.done }

// Exit implements hypervisor.Machine.
func (m *Machine) Exit() hypervisor.Exit {
	select {
	case <-m.done:
		return m.exit
	default:
		return hypervisor.Exit{}
	}
}

// End makes exit the machine's end and closes Done. It is called once, after
// the process has ended.
func (m *Machine) End(exit hypervisor.Exit) {
	m.exit = exit
	close(m.done)
}

// ConsoleTail implements hypervisor.Machine.
func (m *Machine) ConsoleTail() []byte { return m.Process.Console() }

// Dial implements hypervisor.Machine.
func (m *Machine) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	conn, err := m.Process.Dial(ctx, func(ctx context.Context) (net.Conn, error) { return m.Link.Dial(ctx, port) })
	if errors.Is(err, hypervisor.ErrExited) {
		return nil, fmt.Errorf("dial port %d of machine %s: %w", port, m.id, err)
	}
	if err != nil {
		return nil, fmt.Errorf("machine %s: %w", m.id, err)
	}
	return conn, nil
}

// Kill ends the process by force, if there has been one, and waits for End.
func (m *Machine) Kill(ctx context.Context) error {
	if !m.Process.Started() {
		return nil
	}
	if err := m.Process.Kill(ctx); err != nil {
		return err
	}
	select {
	case <-m.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("process %d: its end is not known: %w", m.Pid(), context.Cause(ctx))
	}
}

// GiveUp is hypervisor.Transferable's Disown, with what a backend lets go of
// besides the process.
func (m *Machine) GiveUp(others ...func() error) error {
	m.releasing <- struct{}{}
	defer func() { <-m.releasing }()
	if m.disowned.Load() {
		return nil
	}
	errs := []error{m.Process.Disown()}
	for _, f := range others {
		errs = append(errs, f())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("disown machine %s: %w", m.id, err)
	}
	m.disowned.Store(true)
	return nil
}

// Release is Destroy with what a backend releases: one at a time, and under the
// machine's name.
func (m *Machine) Release(ctx context.Context, release func(context.Context) error) error {
	select {
	case m.releasing <- struct{}{}:
		defer func() { <-m.releasing }()
	case <-ctx.Done():
		return fmt.Errorf("destroy machine %s: %w", m.id, context.Cause(ctx))
	}
	// It is somebody else's now.
	if m.disowned.Load() {
		return nil
	}
	if err := release(ctx); err != nil {
		return fmt.Errorf("destroy machine %s: %w", m.id, err)
	}
	return nil
}
