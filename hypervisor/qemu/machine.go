//go:build linux

package qemu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor/internal/process"
)

// machine is one QEMU process and what it needs. Everything but the channels
// is set before Launch returns and not changed after.
type machine struct {
	id      string
	qemu    *process.Process
	socket  socket
	link    channel
	monitor *monitor

	// done is closed when the process has been reaped and exit has been worked
	// out.
	done chan struct{}
	exit hypervisor.Exit
	// destroying is held by the one Destroy that is under way.
	destroying chan struct{}
}

var _ hypervisor.Machine = (*machine)(nil)

func newMachine(cfg hypervisor.Config) *machine {
	return &machine{
		id:         cfg.ID,
		qemu:       process.New(cfg.Dir, program),
		socket:     socket{cfg.Dir},
		done:       make(chan struct{}),
		destroying: make(chan struct{}, 1),
	}
}

// ID implements hypervisor.Machine.
func (m *machine) ID() string { return m.id }

// Pid implements hypervisor.Machine.
func (m *machine) Pid() int { return m.qemu.Pid() }

// Done implements hypervisor.Machine.
func (m *machine) Done() <-chan struct{} { return m.done }

// Exit implements hypervisor.Machine.
func (m *machine) Exit() hypervisor.Exit {
	select {
	case <-m.done:
		return m.exit
	default:
		return hypervisor.Exit{}
	}
}

// ConsoleTail implements hypervisor.Machine.
func (m *machine) ConsoleTail() []byte { return m.qemu.Console() }

// Dial implements hypervisor.Machine.
func (m *machine) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	conn, err := m.qemu.Dial(ctx, func(ctx context.Context) (net.Conn, error) { return m.link.Dial(ctx, port) })
	if errors.Is(err, hypervisor.ErrExited) {
		return nil, fmt.Errorf("dial port %d of machine %s: %w", port, m.id, err)
	}
	if err != nil {
		return nil, fmt.Errorf("machine %s: %w", m.id, err)
	}
	return conn, nil
}

// PowerOff implements hypervisor.Machine. The guest does not hear of it: its
// kernel has no driver for the ACPI power button, and an agent that listens can
// be asked directly.
func (m *machine) PowerOff(ctx context.Context) error {
	if m.qemu.HasExited() {
		return fmt.Errorf("power off machine %s: %w", m.id, hypervisor.ErrExited)
	}
	err := m.monitor.execute(ctx, "quit", nil, nil)
	// QEMU may be gone before its answer is read.
	if errors.Is(err, errMonitorClosed) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("power off machine %s: %w", m.id, err)
	}
	return nil
}

// Destroy implements hypervisor.Machine.
func (m *machine) Destroy(ctx context.Context) error {
	select {
	case m.destroying <- struct{}{}:
		defer func() { <-m.destroying }()
	case <-ctx.Done():
		return fmt.Errorf("destroy machine %s: %w", m.id, context.Cause(ctx))
	}
	if err := m.release(ctx); err != nil {
		return fmt.Errorf("destroy machine %s: %w", m.id, err)
	}
	return nil
}

// release gives back what launch has taken, as far as it came, in reverse
// order. Every step may be repeated.
func (m *machine) release(ctx context.Context) error {
	if m.qemu.Started() {
		if err := m.qemu.Kill(ctx); err != nil {
			return err
		}
		select {
		case <-m.done:
		case <-ctx.Done():
			return fmt.Errorf("process %d: its end is not known: %w", m.Pid(), context.Cause(ctx))
		}
	}
	errs := []error{m.qemu.Strike()}
	errs = append(errs, m.socket.remove())
	if m.link != nil {
		errs = append(errs, m.link.Close())
	}
	return errors.Join(errs...)
}

// wait waits for the process's end and works out how it ended. connected is closed when
// launch no longer changes m.
func (m *machine) wait(connected <-chan struct{}) {
	<-m.qemu.Ended()
	<-connected
	var shutdown string
	if m.monitor != nil {
		// The last event may still be in the socket; its end comes after it.
		<-m.monitor.closed
		shutdown = m.monitor.Shutdown()
	}
	m.exit = classify(shutdown, m.qemu.Status(), m.qemu.Said())
	m.exit.At = m.qemu.ExitedAt()
	close(m.done)
}

// classify puts an end into the field's terms. shutdown is what the monitor
// last said, see ShutdownCause in QEMU's qapi/run-state.json.
func classify(shutdown string, status syscall.WaitStatus, said string) hypervisor.Exit {
	exit := hypervisor.Exit{Reason: hypervisor.ExitError}
	switch {
	case status.Signaled():
		exit.Reason = hypervisor.ExitKilled
		exit.Detail = "signal: " + status.Signal().String()
	case status.ExitStatus() != 0:
		exit.Detail = fmt.Sprintf("exit status %d", status.ExitStatus())
	case shutdown == "":
		exit.Detail = "exit status 0 without a word on the monitor"
	default:
		exit.Detail = shutdown
		switch shutdown {
		case "guest-shutdown", "host-qmp-quit":
			exit.Reason = hypervisor.ExitPowerOff
		case "guest-reset", "guest-panic":
			exit.Reason = hypervisor.ExitReset
		case "host-signal":
			// SIGTERM and the like, on which QEMU closes down in order.
			exit.Reason = hypervisor.ExitKilled
		}
	}
	if said != "" {
		exit.Detail += "; " + said
	}
	return exit
}
