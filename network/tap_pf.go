package network

import (
	"context"
	"fmt"
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

// makeTap makes the sandbox's tap. One of that name that is somebody else's is left
// alone, and the next that is free becomes the record's; errdefs.ErrUnavailable if
// all are taken.
func (h *freebsd) makeTap(ctx context.Context, r *record) error {
	tap, err := h.iface(ctx, r.Tap)
	if err != nil || strings.Contains(tap, "description: "+h.mark(r.ID)+"\n") {
		return err
	}
	if tap != "" && r.Ready {
		// A machine has been told this name.
		return fmt.Errorf("%s belongs to somebody else: %w", r.Tap, errdefs.ErrUnavailable)
	}
	for range units {
		if tap != "" {
			if err := h.nextTap(ctx, r); err != nil {
				return err
			}
		}
		// Not to be cut off with ctx: ifconfig(8) makes a tap first, and then it says
		// whose it is.
		err := h.run(context.WithoutCancel(ctx), []string{ifconfig, r.Tap, "create", "description", h.mark(r.ID)})
		if err == nil || !strings.Contains(err.Error(), "already exists") {
			return err
		}
		// Another network was quicker.
		if tap, err = h.iface(ctx, r.Tap); err != nil {
			return err
		}
	}
	return fmt.Errorf("no tap is free: %w", errdefs.ErrUnavailable)
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
	tap, err := h.iface(ctx, r.Tap)
	if err != nil || strings.Contains(tap, "description: "+h.mark(r.ID)+"\n") {
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
