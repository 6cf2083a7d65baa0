package bhyve

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor/internal/process"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
)

// machine is one virtual machine, its bhyve(8) and what they need. Everything
// is set before Launch returns and not changed after.
type machine struct {
	*process.Machine
	cfg hypervisor.Config
	dir string
	// vm is the virtual machine's name.
	vm string
	// mark is an argument of the process as it starts.
	mark    string
	vmm     vmm
	receipt *receipt.Receipt
	// tap is Link, as this package knows it.
	tap tapLink
	// port is the containers' interface's tap, nil if it is not the machine's own.
	port tap
	// started is true once the guest was seen to run.
	started bool
	// suspending is true while Checkpoint waits for the end.
	suspending atomic.Bool
}

var (
	_ hypervisor.Machine      = (*machine)(nil)
	_ hypervisor.Parker       = (*machine)(nil)
	_ hypervisor.Transferable = (*machine)(nil)
	_ hypervisor.Pluggable    = (*machine)(nil)
)

func newMachine(cfg hypervisor.Config, v vmm, p *process.Process) *machine {
	return &machine{
		Machine: process.NewMachine(cfg.ID, p),
		cfg:     cfg,
		dir:     cfg.Dir,
		vm:      vmName(cfg.ID),
		vmm:     v,
	}
}

func (m *machine) link(l tapLink) { m.tap, m.Link = l, l }

// Port implements hypervisor.Pluggable.
func (m *machine) Port() *hypervisor.NIC {
	if m.port == nil {
		return nil
	}
	return &hypervisor.NIC{Tap: m.port.Tap(), MAC: m.cfg.NIC.MAC}
}

// PowerOff implements hypervisor.Machine. The guest does not hear of it: an
// agent that listens can be asked directly, and SIGTERM, which is the power
// button, kills a bhyve whose guest has not said that it watches it.
func (m *machine) PowerOff(context.Context) error {
	if m.Process.HasExited() {
		return fmt.Errorf("power off machine %s: %w", m.ID(), hypervisor.ErrExited)
	}
	// One that is parked ends as soon as it runs again.
	err := errors.Join(m.vmm.powerOff(m.vm), m.Wake())
	if errdefs.IsNotFound(err) {
		err = hypervisor.ErrExited
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
	if err := m.end(ctx); err != nil {
		return err
	}
	errs := []error{m.Process.Forget()}
	if m.receipt != nil {
		err := errors.Join(destroyed(m.vmm.Destroy(m.vm)), removeCheckpointSocket(m.vm))
		if err == nil {
			err = m.receipt.Strike()
		}
		errs = append(errs, err)
	}
	errs = append(errs, unprepare(m.dir), vacate(m.cfg.CheckpointDir))
	// Only now: a tap cannot be destroyed while it is open.
	if m.port != nil {
		errs = append(errs, m.port.Close())
	}
	if m.Link != nil {
		errs = append(errs, m.Link.Close())
	}
	return errors.Join(errs...)
}

// end ends the process by force. A vCPU that sleeps in HLT takes up to a second
// to notice a signal, and none to notice that it is powered off
// (sys/amd64/vmm/vmm.c, vm_handle_hlt).
func (m *machine) end(ctx context.Context) error {
	if m.started && !m.Process.HasExited() {
		if err := m.vmm.powerOff(m.vm); err != nil {
			log.G(ctx).WithError(err).WithField("machine", m.ID()).Debug("could not be powered off before it is killed")
		}
	}
	return m.Kill(ctx)
}

// wait waits for the process's end and works out how it ended. launched is
// closed when launch no longer changes m.
func (m *machine) wait(launched <-chan struct{}) {
	select {
	case <-m.Process.Ended():
	case <-m.Process.Disowned():
		return
	}
	<-launched
	// Without its bhyve it can never run again, and would keep the guest's
	// memory. What fails here is repeated, and reported, by Destroy.
	_ = m.vmm.Destroy(m.vm)
	status, known := m.Process.Status()
	m.End(ending{Status: status, Unknown: !known, Started: m.started, Suspending: m.suspending.Load(), Said: m.Process.Said(), At: m.Process.ExitedAt()}.exit())
}
