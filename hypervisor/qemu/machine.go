//go:build linux

package qemu

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor/internal/process"
)

// machine is one QEMU process and what it needs. Everything is set before Launch
// returns and not changed after.
type machine struct {
	*process.Machine
	socket  socket
	monitor *monitor
}

var _ hypervisor.Machine = (*machine)(nil)

func newMachine(cfg hypervisor.Config) *machine {
	return &machine{
		Machine: process.NewMachine(cfg.ID, process.New(cfg.Dir, program)),
		socket:  socket{cfg.Dir},
	}
}

// PowerOff implements hypervisor.Machine. The guest does not hear of it: its
// kernel has no driver for the ACPI power button, and an agent that listens can
// be asked directly.
func (m *machine) PowerOff(ctx context.Context) error {
	if m.Process.HasExited() {
		return fmt.Errorf("power off machine %s: %w", m.ID(), hypervisor.ErrExited)
	}
	err := m.monitor.execute(ctx, "quit", nil, nil)
	// QEMU may be gone before its answer is read.
	if errors.Is(err, errMonitorClosed) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("power off machine %s: %w", m.ID(), err)
	}
	return nil
}

// Destroy implements hypervisor.Machine.
func (m *machine) Destroy(ctx context.Context) error { return m.Release(ctx, m.release) }

// release gives back what launch has taken, as far as it came, in reverse
// order. Every step may be repeated.
func (m *machine) release(ctx context.Context) error {
	if err := m.Kill(ctx); err != nil {
		return err
	}
	errs := []error{m.Process.Strike(), m.socket.remove()}
	if m.Link != nil {
		errs = append(errs, m.Link.Close())
	}
	return errors.Join(errs...)
}

// wait waits for the process's end and works out how it ended. connected is
// closed when launch no longer changes m.
func (m *machine) wait(connected <-chan struct{}) {
	<-m.Process.Ended()
	<-connected
	var shutdown string
	if m.monitor != nil {
		// The last event may still be in the socket; its end comes after it.
		<-m.monitor.closed
		shutdown = m.monitor.Shutdown()
	}
	exit := classify(shutdown, m.Process.Status(), m.Process.Said())
	exit.At = m.Process.ExitedAt()
	m.End(exit)
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
