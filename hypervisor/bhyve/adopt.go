package bhyve

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor/internal/process"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
)

var _ hypervisor.Adopter = Backend{}

// Record implements hypervisor.Transferable.
func (m *machine) Record() hypervisor.Record {
	return hypervisor.Record{Backend: Backend{}.Name(), ID: m.ID(), Dir: m.dir, Process: m.Process.ID(), Mark: m.mark}
}

// Disown implements hypervisor.Transferable.
func (m *machine) Disown() error {
	others := []func() error{m.receipt.Strike, m.tap.Disown}
	if m.port != nil {
		others = append(others, m.port.Disown)
	}
	return m.GiveUp(others...)
}

// Adopt implements hypervisor.Adopter. What the machine consists of besides its
// process follows from its id and from what Launch wrote to its directory.
func (b Backend) Adopt(ctx context.Context, r hypervisor.Record, book *receipt.Book) (hypervisor.Machine, error) {
	if r.Backend != b.Name() || r.Dir == "" {
		return nil, fmt.Errorf("adopt machine %q of backend %q: it is not %s's: %w", r.ID, r.Backend, b.Name(), errdefs.ErrInvalidArgument)
	}
	if err := hypervisor.ValidateID(r.ID); err != nil {
		return nil, err
	}
	m, err := b.adopt(ctx, r, book)
	if err != nil {
		return nil, fmt.Errorf("adopt machine %s: %w", r.ID, err)
	}
	return m, nil
}

func (b Backend) adopt(ctx context.Context, r hypervisor.Record, book *receipt.Book) (_ *machine, err error) {
	alive, err := r.Process.Alive()
	if err != nil {
		return nil, err
	}
	g, gerr := readGuest(r.Dir)
	if !alive {
		return nil, b.gone(r, g, book)
	}
	if gerr == nil && (len(g.NICs) == 0 || g.PortMark != "" && len(g.NICs) < 2 || g.Name != vmName(r.ID)) {
		gerr = fmt.Errorf("%s is of virtual machine %q, want %q: %w", guestFile, g.Name, vmName(r.ID), errdefs.ErrFailedPrecondition)
	}
	if gerr != nil {
		return nil, gerr
	}
	started, err := b.vmm.active(g.Name)
	if err != nil && !errdefs.IsNotFound(err) {
		return nil, err
	}
	// In the order of launch: receipts are undone backwards, and a tap cannot be
	// destroyed before the process that has it open has ended.
	link, err := b.adoptLink(g.NICs[0].Tap, g.LinkMark, book)
	if err != nil {
		return nil, err
	}
	// What this fails with is still its former owner's.
	giveBack := []func() error{link.Disown}
	defer func() {
		for _, f := range slices.Backward(giveBack) {
			err = errors.Join(err, f())
		}
	}()
	var port tap
	if g.PortMark != "" {
		if port, err = b.adoptPort(g.NICs[1].Tap, g.PortMark, book); err != nil {
			return nil, err
		}
		giveBack = append(giveBack, port.Disown)
	}
	line, err := book.Write(vmReceipt{g.Name})
	if err != nil {
		return nil, err
	}
	giveBack = append(giveBack, line.Strike)
	p, err := process.Adopt(log.G(ctx).WithField("machine", r.ID), r.Dir, r.Process, book, r.Mark)
	if err != nil {
		return nil, err
	}
	giveBack = nil
	cfg := g.Asked
	cfg.ID, cfg.Dir = r.ID, r.Dir
	m := newMachine(cfg, b.vmm, p)
	m.mark, m.started, m.receipt = r.Mark, started, line
	m.link(link)
	m.port = port
	launched := make(chan struct{})
	close(launched)
	go m.wait(launched)
	return m, nil
}

// gone removes what is left of a machine whose process has ended.
func (b Backend) gone(r hypervisor.Record, g guest, book *receipt.Book) error {
	vm := vmName(r.ID)
	errs := []error{
		destroyed(b.vmm.Destroy(vm)), removeCheckpointSocket(vm),
		process.RemoveOutputs(r.Dir), vacate(g.Asked.CheckpointDir),
	}
	if len(g.NICs) > 0 && g.LinkMark != "" {
		link, err := b.adoptLink(g.NICs[0].Tap, g.LinkMark, book)
		if err == nil {
			err = link.Close()
		}
		errs = append(errs, err)
	}
	if len(g.NICs) > 1 && g.PortMark != "" {
		port, err := b.adoptPort(g.NICs[1].Tap, g.PortMark, book)
		if err == nil {
			err = port.Close()
		}
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	// Last: it says what there was.
	if err := unprepare(r.Dir); err != nil {
		return err
	}
	return fmt.Errorf("process %s has ended: %w", r.Process, errdefs.ErrNotFound)
}

// readGuest reads what prepare has written.
func readGuest(dir string) (g guest, err error) {
	data, err := os.ReadFile(filepath.Join(dir, guestFile))
	if errors.Is(err, os.ErrNotExist) {
		return g, fmt.Errorf("%w: %w", errdefs.ErrNotFound, err)
	}
	if err != nil {
		return g, err
	}
	if err := json.Unmarshal(data, &g); err != nil {
		return g, fmt.Errorf("%s: %w", guestFile, err)
	}
	return g, nil
}
