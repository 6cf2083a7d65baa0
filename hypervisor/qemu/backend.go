//go:build linux

package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"time"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor/internal/process"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor/link"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/google/uuid"
)

const program = "qemu-system-x86_64"

// maxVCPUs is what 8-bit APIC ids can name.
const maxVCPUs = 255

// cleanupTimeout bounds the undoing of a launch that failed.
const cleanupTimeout = 10 * time.Second

// Backend makes machines out of QEMU processes.
type Backend struct{}

var _ hypervisor.Backend = Backend{}

// New returns the backend. Whether this host has what it needs is told by
// Capabilities and Launch.
func New() Backend { return Backend{} }

// Name implements hypervisor.Backend.
func (Backend) Name() string { return "qemu" }

// Capabilities implements hypervisor.Backend. It returns errdefs.ErrUnavailable
// if QEMU is not installed, and errdefs.ErrNotImplemented on architectures
// other than amd64.
func (Backend) Capabilities(context.Context) (hypervisor.Capabilities, error) {
	if runtime.GOARCH != "amd64" {
		return hypervisor.Capabilities{}, fmt.Errorf("qemu machines on %s: %w", runtime.GOARCH, errdefs.ErrNotImplemented)
	}
	if _, err := exec.LookPath(program); err != nil {
		return hypervisor.Capabilities{}, fmt.Errorf("is QEMU installed? %w: %w", errdefs.ErrUnavailable, err)
	}
	return hypervisor.Capabilities{Accelerated: haveKVM(), Vsock: haveVsock(), Checkpoint: true, Plug: true, MaxVCPUs: maxVCPUs}, nil
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
	for _, path := range []string{cfg.Kernel, cfg.Initrd} {
		if _, err := os.Stat(path); err != nil {
			return nil, fmt.Errorf("machine %s: %w", cfg.ID, kindOf(err))
		}
	}
	s := spec{Config: cfg, uuid: uuid.NewString(), kvm: caps.Accelerated}
	m := newMachine(cfg, process.New(cfg.Dir, program))
	if from == "" {
		err = m.launch(ctx, caps, s, book)
	} else {
		err = m.restore(ctx, caps, s, from, book)
	}
	if err != nil {
		// Also when ctx is what ended the launch.
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
		defer cancel()
		if derr := m.Destroy(undo); derr != nil {
			err = errors.Join(err, derr)
		}
		if !m.Process.Started() {
			return nil, fmt.Errorf("machine %s: %w", cfg.ID, err)
		}
		if said := m.Process.Stderr(); len(said) > 0 {
			err = fmt.Errorf("%w: %s says: %s", err, program, bytes.TrimSpace(said))
		}
		return nil, &hypervisor.LaunchError{ID: cfg.ID, Phase: "start", Console: m.ConsoleTail(), Err: err}
	}
	return m, nil
}

// kindOf gives file errors their errdefs kind.
func kindOf(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w: %w", errdefs.ErrNotFound, err)
	}
	return err
}

// launch acquires one thing after the other; Destroy releases those that are
// there.
func (m *machine) launch(ctx context.Context, caps hypervisor.Capabilities, s spec, book *receipt.Book) error {
	if m.cfg.CheckpointDir != "" {
		if err := m.memory.vacant(); err != nil {
			return err
		}
		s.memory, s.shared = m.memory.path(), true
	}
	if err := m.run(ctx, caps, s, book); err != nil {
		return err
	}
	return m.running(ctx)
}

// run starts QEMU and connects to its monitor. QEMU listens from before its
// start, so nothing is retried: the answer comes when QEMU has set up the
// machine, or the connection ends when it has given up.
func (m *machine) run(ctx context.Context, caps hypervisor.Capabilities, s spec, book *receipt.Book) error {
	disks, err := openDisks(s.Disks)
	if err != nil {
		return err
	}
	defer closeFiles(disks)
	linkFile, err := m.openLink(ctx, caps, &s, book)
	if err != nil {
		return err
	}
	// The tap is to end with QEMU.
	defer linkFile.Close()
	inherited := []*os.File{linkFD - 3: linkFile}
	nic, err := openNIC(s.NIC)
	if err != nil {
		return err
	}
	defer nic.close()
	if nic.tap != nil {
		inherited = append(inherited, nic.tap)
	}

	if s.memory == "" && m.cfg.MemoryDir != "" {
		memory, err := openMemory(m.cfg.MemoryDir)
		if err != nil {
			return err
		}
		defer memory.Close()
		s.memory, s.shared = fmt.Sprintf("/proc/self/fd/%d", monitorFD+len(inherited)), true
		inherited = append(inherited, memory)
	}

	if s.drives, err = drivesOf(s.Disks, disks, monitorFD+len(inherited)); err != nil {
		return err
	}
	inherited = append(inherited, disks...)

	if s.qemu, err = installed(ctx); err != nil {
		return err
	}
	s.root = m.root.path()
	args, err := s.args()
	if err != nil {
		return err
	}
	if err := m.root.make(); err != nil {
		return err
	}
	if err := saveConfig(m.cfg); err != nil {
		return err
	}
	listener, err := m.socket.listen()
	if err != nil {
		return err
	}
	defer listener.Close()
	inherited[monitorFD-3] = listener

	m.mark, m.cid = s.uuid, s.cid
	m.Process.Cmd.Args = append(m.Process.Cmd.Args, args...)
	m.Process.Cmd.ExtraFiles = inherited
	err = nic.around(m.Process.Cmd, func() error {
		return m.Process.Start(log.G(ctx).WithField("machine", m.ID()), book, s.uuid)
	})
	if m.Process.Started() {
		go m.wait()
		defer close(m.connected)
	}
	if err != nil {
		return err
	}
	// QEMU alone has it now, so that it ends with it.
	listener.Close()
	return m.openMonitor(ctx)
}

// openLink takes what the guest is reached by, and returns the file of it that
// QEMU inherits.
func (m *machine) openLink(ctx context.Context, caps hypervisor.Capabilities, s *spec, book *receipt.Book) (*os.File, error) {
	if caps.Vsock {
		v, err := openVsock()
		if err != nil {
			return nil, err
		}
		m.Link, s.cid = v, v.cid
		return v.device, nil
	}
	l, err := link.Open(ctx, book)
	if err != nil {
		return nil, err
	}
	m.Link = l
	return l.Tap(), nil
}

// running sees the machine run.
func (m *machine) running(ctx context.Context) error {
	var status struct {
		Status  string `json:"status"`
		Running bool   `json:"running"`
	}
	if err := m.execute(ctx, "query-status", nil, &status); err != nil {
		return err
	}
	if !status.Running {
		return fmt.Errorf("virtual CPUs do not run: %s", status.Status)
	}
	return nil
}

func (m *machine) openMonitor(ctx context.Context) error {
	conn, err := m.socket.dial(ctx)
	if err != nil {
		return err
	}
	if m.monitor, err = openMonitor(ctx, conn); err != nil {
		return err
	}
	// It answers from its main loop, when its start is over.
	return m.root.remove()
}
