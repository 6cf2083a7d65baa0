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
// or Adopt returns and not changed after, except the monitor of a machine that
// was adopted.
type machine struct {
	*process.Machine
	cfg    hypervisor.Config
	socket socket
	root   root
	// memory is where the guest's memory is, if it is to be saved.
	memory memoryDir
	// mark is the argument that finds the process, cid the guest's vsock address.
	mark string
	cid  uint32
	// kvm is true where it runs on the hardware.
	kvm bool

	// connected is closed when there will be no other monitor than this one,
	// which is nil if none could be opened.
	connected chan struct{}
	monitor   *monitor
}

var (
	_ hypervisor.Machine      = (*machine)(nil)
	_ hypervisor.Parker       = (*machine)(nil)
	_ hypervisor.Transferable = (*machine)(nil)
)

func newMachine(cfg hypervisor.Config, p *process.Process) *machine {
	return &machine{
		Machine:   process.NewMachine(cfg.ID, p),
		cfg:       cfg,
		socket:    socket{cfg.Dir},
		root:      root{cfg.Dir},
		memory:    memoryDir(cfg.CheckpointDir),
		kvm:       haveKVM(),
		connected: make(chan struct{}),
	}
}

// execute has the monitor carry out a command, as soon as there is one.
func (m *machine) execute(ctx context.Context, command string, args, result any) error {
	select {
	case <-m.connected:
	case <-m.Process.Exited():
		return errMonitorClosed
	case <-ctx.Done():
		return fmt.Errorf("QMP %s: the monitor does not answer: %w", command, context.Cause(ctx))
	}
	if m.monitor == nil {
		return errMonitorClosed
	}
	return m.monitor.execute(ctx, command, args, result)
}

// PowerOff implements hypervisor.Machine. The guest does not hear of it: its
// kernel has no driver for the ACPI power button, and an agent that listens can
// be asked directly.
func (m *machine) PowerOff(ctx context.Context) error {
	if m.Process.HasExited() {
		return fmt.Errorf("power off machine %s: %w", m.ID(), hypervisor.ErrExited)
	}
	// One that is parked hears of nothing.
	if err := m.Wake(); err != nil {
		return fmt.Errorf("power off machine %s: %w", m.ID(), err)
	}
	err := m.execute(ctx, "quit", nil, nil)
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
	errs := []error{m.Process.Forget(), m.socket.remove(), m.root.remove(), m.memory.vacate(), removeConfig(m.cfg.Dir)}
	if m.Link != nil {
		errs = append(errs, m.Link.Close())
	}
	return errors.Join(errs...)
}

// wait waits for the process's end and works out how it ended.
func (m *machine) wait() {
	select {
	case <-m.Process.Ended():
	case <-m.Process.Disowned():
		return
	}
	<-m.connected
	var shutdown string
	if m.monitor != nil {
		// The last event may still be in the socket; its end comes after it.
		<-m.monitor.closed
		shutdown = m.monitor.Shutdown()
	}
	status, known := m.Process.Status()
	exit := classify(shutdown, status, known, m.Process.Said())
	exit.At = m.Process.ExitedAt()
	m.End(exit)
}

// classify puts an end into the field's terms. shutdown is what the monitor
// last said, see ShutdownCause in QEMU's qapi/run-state.json. Whether status is
// known depends on who started the process: without it, a shutdown is taken
// for the whole story.
func classify(shutdown string, status syscall.WaitStatus, known bool, said string) hypervisor.Exit {
	exit := hypervisor.Exit{Reason: hypervisor.ExitError}
	switch {
	case !known && shutdown == "":
		exit.Detail = "ended without a word on the monitor, and its status is not known"
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
