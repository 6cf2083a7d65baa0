package bhyve

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor/internal/process"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/vmmapi"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/google/uuid"
)

const (
	// startTimeout bounds the time to the guest's first instruction: reading
	// kernel and initramfs, and bhyve's compiling of the ACPI tables.
	startTimeout = 60 * time.Second
	// startPoll is how often it is looked whether the guest runs. Nothing tells.
	startPoll = 5 * time.Millisecond
	// cleanupTimeout bounds the undoing of a launch that failed.
	cleanupTimeout = 10 * time.Second
)

// tap is a tap of the machine's own: package link's Port, or the Link's.
type tap interface {
	// Tap is the tap's name, Mark what tells it from another that gets its name
	// after it.
	Tap() string
	Mark() string
	// Disown lets go of the tap as it is, Close destroys it.
	Disown() error
	Close() error
}

// tapLink is package link's Link where taps have names.
type tapLink interface {
	tap
	Dial(ctx context.Context, port uint32) (net.Conn, error)
}

// Backend makes machines out of bhyve(8) processes.
type Backend struct {
	vmm      vmm
	openLink func(context.Context, *receipt.Book) (tapLink, error)
	// adoptLink is for a link that another owner has opened. It has a receipt
	// in the book, if there is one, even after an error.
	adoptLink func(tap, mark string, book *receipt.Book) (tapLink, error)
	// openPort and adoptPort are the same for the tap of an interface that leads
	// nowhere yet.
	openPort  func(context.Context, *receipt.Book) (tap, error)
	adoptPort func(name, mark string, book *receipt.Book) (tap, error)
	// tapsOf are the taps of links and ports that a process has open.
	tapsOf func(ctx context.Context, pid int) ([]receipt.Resource, error)
	// loader is the program that becomes bhyve, and its first arguments.
	loader func() ([]string, error)
}

var _ hypervisor.Backend = Backend{}

// New returns the backend. Whether this host has what it needs is told by
// Capabilities and Launch.
func New() Backend {
	return Backend{
		vmm: thisHost{vmmapi.ThisHost()}, loader: thisProgram,
		openLink: openLink, adoptLink: adoptLink, openPort: openPort, adoptPort: adoptPort,
		tapsOf: tapsOf,
	}
}

func thisProgram() ([]string, error) {
	self, err := os.Executable()
	return []string{self, loadCommand}, err
}

// Name implements hypervisor.Backend.
func (Backend) Name() string { return "bhyve" }

// Capabilities implements hypervisor.Backend. Guests always run on the
// hardware, and FreeBSD 15's bhyve has no vsock. It returns
// errdefs.ErrNotImplemented where libvmmapi is not linked in, and
// errdefs.ErrFailedPrecondition where vmm(4) is not loaded.
func (b Backend) Capabilities(ctx context.Context) (hypervisor.Capabilities, error) {
	n, err := b.vmm.MaxVCPUs()
	if err != nil {
		return hypervisor.Capabilities{}, fmt.Errorf("bhyve machines: %w", err)
	}
	caps := hypervisor.Capabilities{Accelerated: true, Plug: true, MaxVCPUs: n}
	// Who does not ask for it is not to fail for it.
	if caps.Checkpoint, err = b.vmm.SupportsCheckpoint(); err != nil {
		log.G(ctx).WithError(err).Warn("whether machines can be saved is not known")
	}
	return caps, nil
}

// Launch implements hypervisor.Backend.
func (b Backend) Launch(ctx context.Context, cfg hypervisor.Config, book *receipt.Book) (hypervisor.Machine, error) {
	return b.start(ctx, cfg, "", book)
}

// start starts a machine by its kernel, or by the checkpoint in a directory.
func (b Backend) start(ctx context.Context, cfg hypervisor.Config, from string, book *receipt.Book) (hypervisor.Machine, error) {
	caps, err := b.Capabilities(ctx)
	if err != nil {
		return nil, err
	}
	if err := cfg.Validate(caps); err != nil {
		return nil, err
	}
	if cfg.MemoryDir != "" {
		return nil, fmt.Errorf("machine %s: memory in a file: %w", cfg.ID, errdefs.ErrNotImplemented)
	}
	if cfg.NIC != nil && cfg.NIC.NetNS != "" {
		return nil, fmt.Errorf("machine %s: tap in network namespace %s: there are none: %w", cfg.ID, cfg.NIC.NetNS, errdefs.ErrInvalidArgument)
	}
	for _, path := range []string{cfg.Kernel, cfg.Initrd} {
		if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("machine %s: %w: %w", cfg.ID, errdefs.ErrNotFound, err)
		} else if err != nil {
			return nil, fmt.Errorf("machine %s: %w", cfg.ID, err)
		}
	}
	for _, d := range cfg.Disks {
		// bhyve(8) opens them itself. Where it may not write it would give the guest a
		// disk that is read-only (usr.sbin/bhyve/block_if.c).
		f, err := d.Open()
		if err != nil {
			return nil, fmt.Errorf("machine %s: %w", cfg.ID, err)
		}
		f.Close()
	}
	destroyOrphans(ctx, b.vmm)

	loader, err := b.loader()
	if err != nil {
		return nil, fmt.Errorf("machine %s: this program's own path: %w", cfg.ID, err)
	}
	m := newMachine(cfg, b.vmm, process.New(cfg.Dir, loader[0], loader[1:]...))
	if err := m.launch(ctx, from, b, book); err != nil {
		// Also when ctx is what ended the launch.
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
		defer cancel()
		if derr := m.Destroy(undo); derr != nil {
			err = errors.Join(err, derr)
		}
		if !m.Process.Started() {
			return nil, fmt.Errorf("machine %s: %w", cfg.ID, err)
		}
		if said := bytes.TrimSpace(m.Process.Stderr()); len(said) > 0 {
			err = fmt.Errorf("%w: bhyve says: %s", err, said)
		}
		return nil, &hypervisor.LaunchError{ID: cfg.ID, Phase: "start", Console: m.ConsoleTail(), Err: err}
	}
	return m, nil
}

// launch acquires one thing after the other; Destroy releases those that are
// there.
func (m *machine) launch(ctx context.Context, from string, b Backend, book *receipt.Book) error {
	if is, err := exists(m.cfg.CheckpointDir); err != nil || is {
		return errors.Join(err, fmt.Errorf("%s holds a checkpoint: %w", m.cfg.CheckpointDir, errdefs.ErrAlreadyExists))
	}
	m.mark = uuid.NewString()
	g := guestOf(m.cfg, m.vm, m.mark, "")
	if from != "" {
		var err error
		if g.Restore, err = restorable(m.vmm, g, from); err != nil {
			return err
		}
	}
	link, err := b.openLink(ctx, book)
	if err != nil {
		return err
	}
	m.link(link)
	g.NICs[0].Tap, g.LinkMark = link.Tap(), link.Mark()
	if m.cfg.NIC != nil && m.cfg.NIC.Tap == "" {
		if m.port, err = b.openPort(ctx, book); err != nil {
			return err
		}
		g.NICs[1].Tap, g.PortMark = m.port.Tap(), m.port.Mark()
	}
	if err := prepare(m.dir, g); err != nil {
		return err
	}
	if m.receipt, err = book.Write(vmReceipt{m.vm}); err != nil {
		return err
	}

	// bhyve reads the serial port's input from its standard input. The other end
	// is its own as well: at an end of file it would read for ever.
	stdin, never, err := os.Pipe()
	if err != nil {
		return err
	}
	defer stdin.Close()
	defer never.Close()
	m.Process.Cmd.Stdin = stdin
	m.Process.Cmd.ExtraFiles = []*os.File{never}
	m.Process.Cmd.Args = append(m.Process.Cmd.Args, m.vm, m.mark, m.dir)

	launched := make(chan struct{})
	defer close(launched)
	err = m.Process.Start(log.G(ctx).WithField("machine", m.ID()), book, m.mark)
	if m.Process.Started() {
		go m.wait(launched)
	}
	if err != nil {
		return err
	}
	if err := m.awaitStart(ctx); err != nil || from == "" {
		return err
	}
	return m.vmm.unpin(ctx, m.Pid())
}

// awaitStart returns once the guest's first vCPU is active: bhyve(8) runs it
// from then on.
func (m *machine) awaitStart(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, fmt.Errorf("the guest does not run after %s: %w", startTimeout, context.DeadlineExceeded))
	defer cancel()
	tick := time.NewTicker(startPoll)
	defer tick.Stop()
	for {
		active, err := m.vmm.active(m.vm)
		if active {
			m.started = true
			return nil
		}
		if err != nil && !errdefs.IsNotFound(err) {
			return err
		}
		select {
		case <-tick.C:
		case <-m.Process.Exited():
			status, _ := m.Process.Status()
			return fmt.Errorf("%w: %s", hypervisor.ErrExited, ending{Status: status}.exit().Detail)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// guestOf is what is loaded and run for a machine.
func guestOf(cfg hypervisor.Config, vm, uuid, tap string) guest {
	nics := []nic{{Tap: tap, MAC: agentproto.GuestLinkMAC}}
	if cfg.NIC != nil {
		nics = append(nics, nic{Tap: cfg.NIC.Tap, MAC: cfg.NIC.MAC})
	}
	return guest{
		config: config{
			Name: vm, UUID: uuid, VCPUs: cfg.VCPUs, MemoryMiB: cfg.MemoryMiB,
			// Without the tables a stock kernel gets no receive interrupts.
			ACPI:    true,
			Console: "stdio",
			NICs:    nics,
			Disks:   cfg.Disks,
			Pinned:  cfg.CheckpointDir != "",
		},
		Kernel: cfg.Kernel, Initrd: cfg.Initrd,
		Cmdline: strings.Join(slices.Concat(kernelArgs, cfg.Cmdline), " "),
		Asked:   cfg,
	}
}

// kernelArgs are the guest kernel's parameters (Documentation/admin-guide/
// kernel-parameters.txt). A restart, after a panic too, is a write to the reset
// control register 0xCF9, which ends bhyve(8) (usr.sbin/bhyve/amd64/pm.c). There
// is no keyboard controller to look for.
var kernelArgs = []string{
	"console=ttyS0", "quiet", "panic=-1", "reboot=p", "i8042.noaux", "i8042.nokbd",
	// A machine that was parked for a while has done nothing wrong, and an idle
	// one need not wake up to prove it.
	"nowatchdog", "rcupdate.rcu_cpu_stall_suppress=1",
	// The LAPIC timer is checked against an emulated one, which is late on a busy host.
	"no_timer_check",
}
