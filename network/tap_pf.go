package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/pf"
)

// Units of taps: above those that the system hands out by itself, from the
// lowest on, and below those of links (package hypervisor/link). bhyve(8) knows
// a tap by this name alone, and all networks of the host have the same ones.
const firstUnit, units = 100, 900

func tapOf(unit uint32) string { return fmt.Sprintf("tap%d", firstUnit+unit%units) }

// tap is the one that is tried first, or the machine's.
func (h *freebsd) tap(addr netip.Addr, port *Port) string {
	if port != nil {
		return port.Tap
	}
	return tapOf(number(addr) - number(h.cfg.First))
}

// mark is the description of a tap that belongs to this network.
func (h *freebsd) mark(id string) string { return h.cfg.Bridge + " " + id }

// whose says whether the record's tap is there, and whether it is the sandbox's: it
// says so itself, but for one whose maker was killed before he had it say so.
func (h *freebsd) whose(r *record) (there, ours bool, err error) {
	mark, err := h.description(r.Tap)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, false, nil
	case err != nil:
		return false, false, err
	case mark == "" && r.Making:
		up, err := h.isUp(r.Tap)
		return true, err == nil && !up, err
	}
	return true, mark == h.mark(r.ID), nil
}

// haveTap makes the sandbox's tap, or takes the machine's, and says whether it has
// been made just now.
func (h *freebsd) haveTap(ctx context.Context, r *record) (isNew bool, err error) {
	if r.port != nil {
		return false, h.takePort(ctx, r)
	}
	return h.makeTap(ctx, r)
}

// makeTap makes the sandbox's tap, if it is not there. One of that name that is
// somebody else's is left alone, and the next that is free becomes the record's;
// errdefs.ErrUnavailable if all are taken.
func (h *freebsd) makeTap(ctx context.Context, r *record) (isNew bool, err error) {
	there, ours, err := h.whose(r)
	switch {
	case err != nil:
		return false, err
	case ours:
		return false, h.markTap(r)
	case there && r.Ready:
		// A machine has been told this name.
		return false, fmt.Errorf("%s belongs to somebody else: %w", r.Tap, errdefs.ErrUnavailable)
	}
	r.Making = true
	for range units {
		if there {
			err = h.nextTap(ctx, r)
		} else {
			err = h.store.save(r)
		}
		if err == nil {
			err = h.create(r.Tap)
		}
		if err == nil {
			return true, h.markTap(r)
		}
		// Another network was quicker.
		if there = errors.Is(err, fs.ErrExist); !there {
			return false, fmt.Errorf("make %s: %w", r.Tap, err)
		}
	}
	return false, fmt.Errorf("no tap is free: %w", errdefs.ErrUnavailable)
}

// markTap has a tap say whose it is. The record is saved later.
func (h *freebsd) markTap(r *record) error {
	if err := h.describe(r.Tap, h.mark(r.ID)); err != nil {
		return fmt.Errorf("describe %s: %w", r.Tap, err)
	}
	r.Making = false
	return nil
}

// nextTap writes down another tap for the sandbox, that nobody has by now.
func (h *freebsd) nextTap(ctx context.Context, r *record) error {
	out, err := h.pf.Run(ctx, "", ifconfig, "-l")
	if err != nil {
		return err
	}
	taken := strings.Fields(string(out))
	start := number(r.Address) - number(h.cfg.First)
	for i := range uint32(units) {
		if name := tapOf(start + i); !slices.Contains(taken, name) {
			r.Tap = name
			return h.store.save(r)
		}
	}
	return fmt.Errorf("all taps from %s to %s are taken: %w", tapOf(0), tapOf(units-1), errdefs.ErrUnavailable)
}

// closing is how long a tap's machine may take to close it.
const closing = 15 * time.Second

// destroyTap waits until nobody has the tap open, as the kernel does;
// errdefs.ErrUnavailable if somebody keeps it.
func (h *freebsd) destroyTap(ctx context.Context, name string) error {
	waiting, cancel := context.WithTimeout(ctx, closing)
	defer cancel()
	err := h.run(waiting, []string{ifconfig, name, "destroy"})
	if err != nil && waiting.Err() != nil && ctx.Err() == nil {
		return fmt.Errorf("%s is open, does its machine run? %w: %w", name, err, errdefs.ErrUnavailable)
	}
	return err
}

// takePort makes a machine's tap the sandbox's, which it is from its new
// description on: up to there it is its machine's to destroy. What it brings
// along, groups with rules of their own, it loses once it is in ours.
func (h *freebsd) takePort(ctx context.Context, r *record) error {
	if r.port.NetNS != "" || r.port.Tap != r.Tap {
		return fmt.Errorf("tap %s for a sandbox that has %s: %w", r.port.Tap, r.Tap, errdefs.ErrInvalidArgument)
	}
	if _, ours, err := h.whose(r); err != nil || ours {
		return err
	}
	tap, err := h.iface(ctx, r.Tap)
	if err != nil {
		return err
	}
	if tap == "" {
		return fmt.Errorf("tap %s: %w", r.Tap, errdefs.ErrNotFound)
	}
	set := []string{ifconfig, r.Tap, "group", pf.Group, "group", pf.TapGroup}
	for group := range strings.FieldsSeq(lineOf(tap, "groups: ")) {
		if group != "tap" && group != pf.Group && group != pf.TapGroup {
			set = append(set, "-group", group)
		}
	}
	return h.run(ctx, append(set, "description", h.mark(r.ID)))
}
