//go:build linux

package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor/internal/checkpoint"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
)

var _ hypervisor.Checkpointer = (*machine)(nil)

const (
	// memoryName is the guest's memory, byte for byte, stateName everything else
	// that QEMU needs to go on.
	memoryName = "memory"
	stateName  = "state"

	// stateFile is what QEMU calls the state's file while it has it.
	stateFile = "state"
	// maxBandwidth is in bytes a second: QEMU's default is for networks.
	maxBandwidth = 1 << 40
	// migrationPoll is how often it is looked whether QEMU is done.
	migrationPoll = 2 * time.Millisecond
)

// memoryDir is the directory in which a machine's memory is, and a checkpoint
// in the end. It is empty for machines that are not saved.
type memoryDir string

func (d memoryDir) path() string { return filepath.Join(string(d), memoryName) }

// vacant makes sure that there is neither a checkpoint nor anything left of one
// that has failed.
func (d memoryDir) vacant() error {
	taken, err := checkpoint.Exists(string(d))
	if err == nil && taken {
		err = fmt.Errorf("%s holds a checkpoint: %w", string(d), errdefs.ErrAlreadyExists)
	}
	if err != nil {
		return err
	}
	return d.vacate()
}

// vacate removes what is not a checkpoint. What is one stays.
func (d memoryDir) vacate() error {
	if d == "" {
		return nil
	}
	if taken, err := checkpoint.Exists(string(d)); err != nil || taken {
		return err
	}
	return errors.Join(remove(d.path()), remove(filepath.Join(string(d), stateName)))
}

// Checkpoint implements hypervisor.Checkpointer. The memory is in its file all
// the while: QEMU writes the rest to another, as if to migrate to a QEMU that
// shares the memory with it.
func (m *machine) Checkpoint(ctx context.Context) error {
	if err := m.checkpoint(ctx); err != nil {
		return fmt.Errorf("checkpoint machine %s: %w", m.ID(), err)
	}
	return nil
}

func (m *machine) checkpoint(ctx context.Context) error {
	if m.Process.HasExited() {
		return hypervisor.ErrExited
	}
	if err := m.cfg.ValidateSave(); err != nil {
		return err
	}
	if m.cfg.CheckpointDir == "" {
		return fmt.Errorf("it was started without a directory for it: %w", errdefs.ErrFailedPrecondition)
	}
	if taken, err := checkpoint.Exists(m.cfg.CheckpointDir); err != nil || taken {
		return errors.Join(err, fmt.Errorf("%s: %w", m.cfg.CheckpointDir, errdefs.ErrAlreadyExists))
	}
	// One that is parked hears of nothing.
	if err := m.Wake(); err != nil {
		return err
	}
	dir := m.cfg.CheckpointDir
	if err := m.save(ctx, dir, withoutMemory); err != nil {
		return errors.Join(err, m.goOn(ctx), remove(statePath(dir)))
	}
	if err := m.execute(ctx, "quit", nil, nil); err != nil && !errors.Is(err, errMonitorClosed) {
		return errors.Join(err, m.goOn(ctx), remove(statePath(dir)))
	}
	select {
	case <-m.Done():
	case <-ctx.Done():
		return fmt.Errorf("QEMU has not exited: %w", context.Cause(ctx))
	}
	is, err := describe(m.cfg, m.kvm, m.cid != 0, m.monitor.version)
	if err != nil {
		return err
	}
	return checkpoint.Write(m.cfg.CheckpointDir, is, memoryName, stateName)
}

// statePath is the state's file of a checkpoint in dir.
func statePath(dir string) string { return filepath.Join(dir, stateName) }

// content is what is in a state's file.
type content bool

const (
	// withoutMemory: the memory has a file of its own.
	withoutMemory content = true
	wholeMemory   content = false
)

// save stops the virtual CPUs and writes the devices' state to a file in dir.
func (m *machine) save(ctx context.Context, dir string, what content) error {
	state, err := os.OpenFile(statePath(dir), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer state.Close()
	if err := m.execute(ctx, "stop", nil, nil); err != nil {
		return err
	}
	if err := m.migrate(ctx, state, what, "migrate"); err != nil {
		return err
	}
	return m.migrated(ctx)
}

// goOn lets the machine run again after save.
func (m *machine) goOn(ctx context.Context) error {
	// Also when ctx is what ended the checkpoint.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	if m.Process.HasExited() {
		return hypervisor.ErrExited
	}
	if err := m.execute(ctx, "migrate_cancel", nil, nil); err != nil {
		log.G(ctx).WithError(err).WithField("machine", m.ID()).Debug("checkpoint that failed could not be cancelled")
	}
	return m.execute(ctx, "cont", nil, nil)
}

// migrate has QEMU migrate to or from a file, by the command of that name, and
// does not wait for the end. QEMU 7.2 does not open one itself, and may not
// start a program that would.
func (m *machine) migrate(ctx context.Context, state *os.File, what content, command string) error {
	capability := map[string]any{"capability": "x-ignore-shared", "state": bool(what)}
	if err := m.execute(ctx, "migrate-set-capabilities", map[string]any{"capabilities": []any{capability}}, nil); err != nil {
		return err
	}
	// No word to the network from the address that all clones still have; and as
	// fast as the disk can.
	if err := m.execute(ctx, "migrate-set-parameters", map[string]any{"announce-rounds": 0, "max-bandwidth": maxBandwidth}, nil); err != nil {
		return err
	}
	if err := m.monitor.executeWith(ctx, state, "getfd", map[string]string{"fdname": stateFile}, nil); err != nil {
		return err
	}
	return m.execute(ctx, command, map[string]string{"uri": "fd:" + stateFile}, nil)
}

// migrated waits for the end of a migration.
func (m *machine) migrated(ctx context.Context) error {
	tick := time.NewTicker(migrationPoll)
	defer tick.Stop()
	for {
		// MigrationInfo in qapi/migration.json.
		var info struct {
			Status string `json:"status"`
			Error  string `json:"error-desc"`
		}
		if err := m.execute(ctx, "query-migrate", nil, &info); err != nil {
			return err
		}
		switch info.Status {
		case "completed":
			return nil
		case "failed", "cancelled":
			return fmt.Errorf("migration %s: %s", info.Status, info.Error)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("migration is %s: %w", info.Status, context.Cause(ctx))
		}
	}
}

// describe is what a checkpoint of a machine is of.
func describe(cfg hypervisor.Config, kvm, vsock bool, version string) (checkpoint.Machine, error) {
	is := checkpoint.Machine{
		Backend: Backend{}.Name(), Monitor: version, CPU: processor(kvm),
		VCPUs: cfg.VCPUs, MemoryMiB: cfg.MemoryMiB,
		Hardware: []string{board, "link: tap"},
		Cmdline:  kernelCmdline(cfg, kvm),
	}
	if vsock {
		is.Hardware[1] = "link: vsock"
	}
	if cfg.NIC != nil {
		is.Hardware = append(is.Hardware, "containers' network interface")
	}
	for _, f := range []struct {
		path string
		to   *string
	}{{cfg.Kernel, &is.Kernel}, {cfg.Initrd, &is.Initrd}} {
		var err error
		if *f.to, err = checkpoint.Digest(f.path); err != nil {
			return is, err
		}
	}
	return is, nil
}
