package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/pf"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/policy"
)

// freebsd is a network of a FreeBSD host: if_bridge(4), tap(4) and pf(4), by way
// of the base system's tools. It is built everywhere, so that what it would run
// is tested everywhere.
type freebsd struct {
	cfg   Config
	store store
	pf    pf.Control
	kernel
}

// kernel is what is had without a program.
type kernel interface {
	// egress names the interfaces by which guests can leave the host.
	egress(bridge string) ([]string, error)
	// knob reads a sysctl; fs.ErrNotExist if there is none.
	knob(name string) (uint32, error)
	// create makes an interface; fs.ErrExist if there is one of that name.
	create(name string) error
	describe(name, text string) error
	// description is an interface's; fs.ErrNotExist if there is none.
	description(name string) (string, error)
	isUp(name string) (bool, error)
}

const (
	ifconfig = "/sbin/ifconfig"
	arp      = "/usr/sbin/arp"
	sysctl   = "/sbin/sysctl"
	netstat  = "/usr/bin/netstat"
)

// run runs commands one after the other.
func (h *freebsd) run(ctx context.Context, commands ...[]string) error {
	for _, argv := range commands {
		if _, err := h.pf.Run(ctx, "", argv...); err != nil {
			return err
		}
	}
	return nil
}

// iface is what ifconfig(8) says of an interface, "" if there is none.
func (h *freebsd) iface(ctx context.Context, name string) (string, error) {
	out, err := h.pf.Run(ctx, "", ifconfig, name)
	if err != nil && strings.Contains(err.Error(), "does not exist") {
		return "", nil
	}
	return string(out), err
}

// exclusively runs f while no other process of this network's does: what all
// sandboxes share is read, and then written.
func (h *freebsd) exclusively(ctx context.Context, f func() error) error {
	lock, err := os.OpenFile(filepath.Join(h.store.dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if err := flock(ctx, lock); err != nil {
		return fmt.Errorf("lock: %w", err)
	}
	defer lock.Close()
	return f()
}

func (h *freebsd) prepare(ctx context.Context) error {
	isThere := false
	err := h.pf.Together(ctx,
		func(ctx context.Context) error { return h.pf.Check(ctx, h.cfg.Bridge) },
		func(ctx context.Context) error {
			bridge, err := h.iface(ctx, h.cfg.Bridge)
			isThere = strings.Contains(bridge, h.gateway())
			return err
		})
	if err != nil {
		return err
	}
	unset, err := h.unset()
	if err != nil || isThere && len(unset) == 0 {
		return err
	}
	return h.exclusively(ctx, func() error {
		bridge, err := h.iface(ctx, h.cfg.Bridge)
		if err != nil {
			return err
		}
		if bridge == "" {
			if err := h.run(ctx, []string{ifconfig, "bridge", "create", "name", h.cfg.Bridge}); err != nil {
				return err
			}
		}
		if len(unset) > 0 {
			if err := h.run(ctx, append([]string{sysctl}, unset...)); err != nil {
				return err
			}
		}
		if strings.Contains(bridge, h.gateway()) {
			return nil
		}
		// The host asks nobody for a hardware address: it knows every guest's.
		return h.run(ctx,
			[]string{ifconfig, h.cfg.Bridge, "ether", macOf(h.cfg.Gateway).String(), "group", pf.Group, "mtu", fmt.Sprint(h.cfg.MTU), "staticarp"},
			[]string{ifconfig, h.cfg.Bridge, "inet", fmt.Sprintf("%s/%d", h.cfg.Gateway, h.cfg.Subnet.Bits()), "up"})
	})
}

// gateway is how ifconfig tells the bridge's address, which it has last of all.
func (h *freebsd) gateway() string { return "inet " + h.cfg.Gateway.String() + " " }

// knobs are sysctls without which a guest's packets are not seen where the rules
// look for them (package pf): on taps, also those that are for the host itself.
// Of what is not IP, ARP passes alone.
var knobs = []struct {
	name  string
	value uint32
}{
	{"net.inet.ip.forwarding", 1}, {"net.inet.ip.redirect", 0},
	{"net.link.bridge.pfil_member", 1}, {"net.link.bridge.pfil_local_phys", 1},
	{"net.link.bridge.pfil_bridge", 0}, {"net.link.bridge.pfil_onlyip", 1},
}

// unset are the knobs that are set otherwise, in the words that set them. Some are not
// there before the first bridge is.
func (h *freebsd) unset() (all []string, err error) {
	for _, k := range knobs {
		value, err := h.knob(k.name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("sysctl %s: %w", k.name, err)
		}
		if err != nil || value != k.value {
			all = append(all, fmt.Sprintf("%s=%d", k.name, k.value))
		}
	}
	return all, nil
}

func (h *freebsd) sandbox(r *record, p *policy.Compiled) pf.Sandbox {
	s := pf.Sandbox{Name: r.Anchor, Tap: r.Tap, Bridge: h.cfg.Bridge, Address: r.Address, Policy: p, Pipe: r.Pipe}
	if p != nil {
		s.Opened = openOf(r.Opened, p)
	}
	return s
}

// dispatch rewrites the lines by which pf finds the sandboxes' rules.
func (h *freebsd) dispatch(ctx context.Context) error {
	egress, err := h.egress(h.cfg.Bridge)
	if err != nil {
		return err
	}
	return h.exclusively(ctx, func() error {
		records, err := h.store.records()
		if err != nil {
			return err
		}
		d := pf.Dispatch{Bridge: h.cfg.Bridge, Subnet: h.cfg.Subnet.Masked(), Egress: egress}
		for _, r := range records {
			if !r.Leaving {
				d.Sandboxes = append(d.Sandboxes, h.sandbox(r, nil))
			}
		}
		return h.pf.Load(ctx, pf.NetworkAnchor(h.cfg.Bridge), d.Rules())
	})
}

func (h *freebsd) attach(ctx context.Context, r *record, p *policy.Compiled) error {
	if r.NetNS != "" {
		return fmt.Errorf("network namespace %s: there are none: %w", r.NetNS, errdefs.ErrNotImplemented)
	}
	isNew, err := h.haveTap(ctx, r)
	if err != nil {
		return err
	}
	isMember := false
	if !isNew {
		bridge, err := h.iface(ctx, h.cfg.Bridge)
		if err != nil {
			return err
		}
		isMember = lineOf(bridge, "member: "+r.Tap+" ") != ""
	}
	// In the groups that are denied everything, before it can carry anything.
	set := []string{ifconfig, r.Tap, "inet6", "ifdisabled", "group", pf.Group, "group", pf.TapGroup}
	join := []string{ifconfig, h.cfg.Bridge}
	if !isMember {
		// A member's cannot be changed.
		set = append(set, "mtu", fmt.Sprint(r.MTU))
		join = append(join, "addm", r.Tap)
	}
	err = h.pf.Together(ctx,
		func(ctx context.Context) error { return h.run(ctx, set) },
		func(ctx context.Context) error {
			return h.run(ctx, []string{arp, "-s", r.Address.String(), r.MAC.String()})
		},
		func(ctx context.Context) error { return h.enforce(ctx, r, p) })
	if err != nil {
		return err
	}
	return h.run(ctx,
		append(join, "private", r.Tap, "-learn", r.Tap, "-discover", r.Tap, "static", r.Tap, r.MAC.String()),
		[]string{ifconfig, r.Tap, "up"})
}

// enforce puts the record's policy into force.
func (h *freebsd) enforce(ctx context.Context, r *record, p *policy.Compiled) error {
	if err := h.limit(ctx, r, p.Bandwidth); err != nil {
		return err
	}
	if err := h.load(ctx, r, p); err != nil {
		return err
	}
	return h.dispatch(ctx)
}

func (h *freebsd) setPolicy(ctx context.Context, r *record, p *policy.Compiled) error {
	pipe, opened := r.Pipe, r.Opened
	if err := h.limit(ctx, r, p.Bandwidth); err != nil {
		return err
	}
	changed := r.Pipe != pipe
	err := h.load(ctx, r, p)
	if err != nil {
		// The record's policy stays.
		r.Opened = opened
		err = errors.Join(err, h.limit(context.WithoutCancel(ctx), r, r.Policy.Bandwidth))
	}
	if changed {
		err = errors.Join(err, h.dispatch(ctx), h.freeUnused(ctx, r))
	}
	return err
}

// load replaces a sandbox's rules, and ends the flows that they do not allow.
func (h *freebsd) load(ctx context.Context, r *record, p *policy.Compiled) error {
	was, err := r.Policy.Compile(r.DNS)
	if err != nil {
		return err
	}
	r.Opened = r.keptOpen(was, p)
	s := h.sandbox(r, p)
	if err := h.store.takePorts(r.ID, p.Publish); err != nil {
		return err
	}
	// One at a time: pf has room for one that loads.
	err = h.exclusively(ctx, func() error { return h.pf.Load(ctx, s.Anchor(), s.Rules()) })
	if err != nil {
		return errors.Join(err, h.store.freePorts(r.ID, was.Publish))
	}
	if err := h.store.freePorts(r.ID, p.Publish); err != nil {
		return err
	}
	if !r.Ready {
		// A guest that has not begun has no flows: who had its address before took his
		// with him.
		return nil
	}
	states, err := h.pf.States(ctx, r.Address)
	if err != nil || len(states) == 0 {
		return err
	}
	own, err := net.InterfaceAddrs()
	if err != nil {
		return fmt.Errorf("addresses of the host: %w", err)
	}
	isHost := func(a netip.Addr) bool {
		return slices.ContainsFunc(own, func(n net.Addr) bool {
			p, err := netip.ParsePrefix(n.String())
			return err == nil && p.Addr() == a
		})
	}
	return h.pf.Kill(ctx, pf.Outlawed(s, states, isHost))
}

// unanswered implements redirector: on lo0 pf would have to translate the answers
// back, and never sees them (decision 69).
func (h *freebsd) unanswered(p *policy.Compiled) []policy.Published { return p.Publish }

func (h *freebsd) detach(ctx context.Context, r *record) (Released, error) {
	_, ours, err := h.whose(r)
	if err != nil {
		return Released{}, err
	}
	if ours {
		if err := h.run(ctx, []string{ifconfig, r.Tap, "down"}); err != nil {
			return Released{}, err
		}
	}
	if err := h.pf.Flush(ctx, h.sandbox(r, nil)); err != nil {
		return Released{}, err
	}
	if err := h.dispatch(ctx); err != nil {
		return Released{}, err
	}
	// From here on nothing makes a state: the tap is down, and no rule lets anything
	// through to the address.
	before, err := h.pf.States(ctx, r.Address)
	released := Released{StatesBefore: len(before)}
	if err != nil {
		return released, err
	}
	if len(before) > 0 {
		left, err := h.pf.KillAll(ctx, r.Address)
		released.StatesAfter = len(left)
		if err != nil {
			return released, err
		}
	}
	if err := errors.Join(h.store.freePorts(r.ID, nil), h.setPipe(r, 0), h.freeUnused(ctx, r)); err != nil || !ours {
		return released, err
	}
	return released, h.pf.Together(ctx,
		func(ctx context.Context) error {
			// An entry that is not there is no matter.
			_ = h.run(ctx, []string{arp, "-d", r.Address.String()})
			return nil
		},
		func(ctx context.Context) error { return h.destroyTap(ctx, r.Tap) })
}

func (h *freebsd) sweep(ctx context.Context, known func(anchor, tap string) bool) ([]string, error) {
	var removed []string
	var errs []error
	out, err := h.pf.Run(ctx, "", ifconfig, "-g", pf.Group)
	if err != nil {
		return nil, err
	}
	for name := range strings.FieldsSeq(string(out)) {
		mark, err := h.description(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil || !strings.HasPrefix(mark, h.mark("")) || known("", name) {
			errs = append(errs, err)
			continue
		}
		if err := h.destroyTap(ctx, name); err != nil {
			errs = append(errs, err)
			continue
		}
		removed = append(removed, "tap "+name)
	}
	anchors, err := h.pf.Sandboxes(ctx, h.cfg.Bridge)
	errs = append(errs, err)
	for _, name := range anchors {
		if known(name, "") {
			continue
		}
		s := pf.Sandbox{Name: name, Bridge: h.cfg.Bridge}
		loaded, err := h.pf.Loaded(ctx, s)
		if err == nil {
			err = h.pf.Flush(ctx, s)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if loaded {
			removed = append(removed, "rules "+name)
		}
	}
	if len(removed) > 0 {
		errs = append(errs, h.dispatch(ctx))
	}
	pipes, err := h.freePipes(ctx, func(owner string, _ pf.Pipe) bool { return known(anchorName(owner), "") })
	return append(removed, pipes...), errors.Join(append(errs, err)...)
}

func (h *freebsd) destroy(ctx context.Context) error {
	if err := h.pf.Load(ctx, pf.NetworkAnchor(h.cfg.Bridge), ""); err != nil {
		return err
	}
	bridge, err := h.iface(ctx, h.cfg.Bridge)
	if err == nil && bridge != "" {
		err = h.run(ctx, []string{ifconfig, h.cfg.Bridge, "destroy"})
	}
	if err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(h.store.dir, "lock")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
