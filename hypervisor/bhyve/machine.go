package bhyve

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor/internal/process"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
)

// machine is one virtual machine, its bhyve(8) and what they need. Everything
// but the channels is set before Launch returns and not changed after.
type machine struct {
	id, dir string
	// vm is the virtual machine's name.
	vm      string
	vmm     vmm
	bhyve   *process.Process
	link    tapLink
	receipt *receipt.Receipt
	// started is true once the guest was seen to run.
	started bool

	// done is closed when the process has been reaped and exit has been worked
	// out.
	done chan struct{}
	exit hypervisor.Exit
	// destroying is held by the one Destroy that is under way.
	destroying chan struct{}
}

var _ hypervisor.Machine = (*machine)(nil)

func newMachine(cfg hypervisor.Config, v vmm, loader []string) *machine {
	return &machine{
		id:         cfg.ID,
		dir:        cfg.Dir,
		vm:         vmName(cfg.ID),
		vmm:        v,
		bhyve:      process.New(cfg.Dir, loader[0], loader[1:]...),
		done:       make(chan struct{}),
		destroying: make(chan struct{}, 1),
	}
}

// ID implements hypervisor.Machine.
func (m *machine) ID() string { return m.id }

// Pid implements hypervisor.Machine.
func (m *machine) Pid() int { return m.bhyve.Pid() }

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
func (m *machine) ConsoleTail() []byte { return m.bhyve.Console() }

// Dial implements hypervisor.Machine.
func (m *machine) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	conn, err := m.bhyve.Dial(ctx, func(ctx context.Context) (net.Conn, error) { return m.link.Dial(ctx, port) })
	if errors.Is(err, hypervisor.ErrExited) {
		return nil, fmt.Errorf("dial port %d of machine %s: %w", port, m.id, err)
	}
	if err != nil {
		return nil, fmt.Errorf("machine %s: %w", m.id, err)
	}
	return conn, nil
}

// PowerOff implements hypervisor.Machine. The guest does not hear of it: an
// agent that listens can be asked directly, and SIGTERM, which is the power
// button, kills a bhyve whose guest has not said that it watches it.
func (m *machine) PowerOff(context.Context) error {
	if m.bhyve.HasExited() {
		return fmt.Errorf("power off machine %s: %w", m.id, hypervisor.ErrExited)
	}
	err := m.vmm.powerOff(m.vm)
	if errdefs.IsNotFound(err) {
		err = hypervisor.ErrExited
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
	if m.bhyve.Started() {
		if err := m.end(ctx); err != nil {
			return err
		}
	}
	errs := []error{m.bhyve.Strike()}
	if m.receipt != nil {
		err := errors.Join(destroyed(m.vmm.Destroy(m.vm)), removeCheckpointSocket(m.vm))
		if err == nil {
			err = m.receipt.Strike()
		}
		errs = append(errs, err)
	}
	errs = append(errs, unprepare(m.dir))
	if m.link != nil {
		// Only now: a tap cannot be destroyed while it is open.
		errs = append(errs, m.link.Close())
	}
	return errors.Join(errs...)
}

// end ends the process by force. A vCPU that sleeps in HLT takes up to a second
// to notice a signal, and none to notice that it is powered off
// (sys/amd64/vmm/vmm.c, vm_handle_hlt).
func (m *machine) end(ctx context.Context) error {
	if m.started && !m.bhyve.HasExited() {
		if err := m.vmm.powerOff(m.vm); err != nil {
			log.G(ctx).WithError(err).WithField("machine", m.id).Debug("could not be powered off before it is killed")
		}
	}
	if err := m.bhyve.Kill(ctx); err != nil {
		return err
	}
	select {
	case <-m.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("process %d: its end is not known: %w", m.Pid(), context.Cause(ctx))
	}
}

// wait waits for the process's end and works out how it ended. launched is
// closed when launch no longer changes m.
func (m *machine) wait(launched <-chan struct{}) {
	<-m.bhyve.Ended()
	<-launched
	// Without its bhyve it can never run again, and would keep the guest's
	// memory. What fails here is repeated, and reported, by Destroy.
	_ = m.vmm.Destroy(m.vm)
	m.exit = ending{Status: m.bhyve.Status(), Started: m.started, Said: m.bhyve.Said(), At: m.bhyve.ExitedAt()}.exit()
	close(m.done)
}
