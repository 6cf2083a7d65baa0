//go:build linux

package qemu

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor/internal/process"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor/link"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
)

var _ hypervisor.Adopter = Backend{}

// Record implements hypervisor.Transferable.
func (m *machine) Record() hypervisor.Record {
	return hypervisor.Record{
		Backend: Backend{}.Name(), ID: m.ID(), Dir: m.cfg.Dir,
		Process: m.Process.ID(), Mark: m.mark, CID: m.cid,
	}
}

// Disown implements hypervisor.Transferable. With the monitor's connection it
// makes room for the next owner's: QEMU serves one at a time.
func (m *machine) Disown() error {
	return m.GiveUp(m.Link.Close, func() error {
		<-m.connected
		if m.monitor == nil {
			return nil
		}
		return m.monitor.Close()
	})
}

// Adopt implements hypervisor.Adopter. The monitor is connected to once its
// former owner has let go of it and the machine is not parked; what needs it
// waits until then.
func (b Backend) Adopt(ctx context.Context, r hypervisor.Record, book *receipt.Book) (hypervisor.Machine, error) {
	if r.Backend != b.Name() || r.Dir == "" {
		return nil, fmt.Errorf("adopt machine %q of backend %q: it is not %s's: %w", r.ID, r.Backend, b.Name(), errdefs.ErrInvalidArgument)
	}
	if err := hypervisor.ValidateID(r.ID); err != nil {
		return nil, err
	}
	m, err := adopt(ctx, r, book)
	if err != nil {
		return nil, fmt.Errorf("adopt machine %s: %w", r.ID, err)
	}
	return m, nil
}

func adopt(ctx context.Context, r hypervisor.Record, book *receipt.Book) (*machine, error) {
	alive, err := r.Process.Alive()
	if err != nil {
		return nil, err
	}
	if !alive {
		return nil, gone(r)
	}
	cfg, err := loadConfig(r.Dir)
	if errdefs.IsNotFound(err) {
		// The machine is there all the same.
		err = fmt.Errorf("%v: %w", err, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return nil, err
	}
	cfg.ID, cfg.Dir = r.ID, r.Dir
	p, err := process.Adopt(log.G(ctx).WithField("machine", r.ID), r.Dir, r.Process, book, r.Mark)
	if err != nil {
		return nil, err
	}
	m := newMachine(cfg, p)
	m.mark, m.cid = r.Mark, r.CID
	if m.Link, err = adoptLink(r); err != nil {
		// It is still its former owner's, unless it is gone.
		err = errors.Join(err, p.Disown())
		if alive, aerr := r.Process.Alive(); aerr == nil && !alive {
			return nil, gone(r)
		}
		return nil, err
	}
	go m.wait()
	go m.reconnect()
	return m, nil
}

// gone removes what is left of a machine whose process has ended. Its link went
// with it.
func gone(r hypervisor.Record) error {
	errs := []error{process.RemoveOutputs(r.Dir), socket{r.Dir}.remove(), root{r.Dir}.remove()}
	cfg, err := loadConfig(r.Dir)
	if err == nil {
		errs = append(errs, memoryDir(cfg.CheckpointDir).vacate(), removeConfig(r.Dir))
	} else if !errdefs.IsNotFound(err) {
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return fmt.Errorf("process %s has ended: %w", r.Process, errdefs.ErrNotFound)
}

// adoptLink finds the link of a machine that runs. A tap and its network
// namespace have no name: they are got from the file that QEMU has open.
func adoptLink(r hypervisor.Record) (channel, error) {
	if r.CID != 0 {
		return &vsockLink{cid: r.CID}, nil
	}
	tap, err := r.Process.File(linkFD)
	if err != nil {
		return nil, err
	}
	// It is to end with QEMU.
	defer tap.Close()
	return link.Adopt(tap)
}

// reconnect opens the monitor, however long that takes, while the process runs.
func (m *machine) reconnect() {
	defer close(m.connected)
	ctx, cancel := m.Process.WhileRunning(context.Background())
	defer cancel()
	if err := m.openMonitor(ctx); err != nil && ctx.Err() == nil {
		log.G(ctx).WithError(err).WithField("machine", m.ID()).Error("no monitor for an adopted machine: it can be destroyed, and not powered off")
	}
}
