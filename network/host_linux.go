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
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/netns"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/nft"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/policy"
)

// linux is a network of the calling thread's network namespace.
type linux struct {
	cfg   Config
	rules nft.Table
}

func newHost(cfg Config, _ store) (host, error) {
	return &linux{cfg: cfg, rules: nft.Table{Bridge: cfg.Bridge, Subnet: cfg.Subnet.Masked(), Gateway: cfg.Gateway, MAC: macOf(cfg.Gateway), LogGroup: cfg.LogGroup}}, nil
}

// tapPrefix begins the names of taps; the address follows in hexadecimal.
const tapPrefix = "cube"

func (h *linux) tap(addr netip.Addr, _ *Port) string {
	return fmt.Sprintf("%s%08x", tapPrefix, number(addr))
}

// isTap says whether a name is one that tap has made for this network.
func (h *linux) isTap(name string) bool {
	var n uint32
	if _, err := fmt.Sscanf(name, tapPrefix+"%08x", &n); err != nil || name != h.tap(fromNumber(n), nil) {
		return false
	}
	return h.cfg.Subnet.Contains(fromNumber(n))
}

func (h *linux) prepare(context.Context) error {
	bridge, err := netlink.LinkByName(h.cfg.Bridge)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		bridge, err = h.addBridge()
	}
	if err != nil {
		return fmt.Errorf("bridge %s: %w", h.cfg.Bridge, err)
	}
	if bridge.Type() != "bridge" {
		return fmt.Errorf("%s is a %s and no bridge: %w", h.cfg.Bridge, bridge.Type(), errdefs.ErrFailedPrecondition)
	}
	if err := h.rules.Ensure(); err != nil {
		return err
	}
	if err := addFence(bridge); err != nil {
		return err
	}
	if bridge.Attrs().Flags&net.FlagUp != 0 {
		// This is done last, so everything has been done.
		return nil
	}
	for _, knob := range []struct{ path, value string }{
		{"ipv4/ip_forward", "1"},
		{"ipv4/conf/" + h.cfg.Bridge + "/send_redirects", "0"},
		// For ports that are published on the loopback. What a guest sends to
		// 127.0.0.0/8 is denied like all that it sends to the host.
		{"ipv4/conf/" + h.cfg.Bridge + "/route_localnet", "1"},
		{"ipv6/conf/" + h.cfg.Bridge + "/disable_ipv6", "1"},
	} {
		if err := setKnob(knob.path, knob.value); err != nil {
			return err
		}
	}
	if err := netlink.LinkSetHardwareAddr(bridge, macOf(h.cfg.Gateway)); err != nil {
		return fmt.Errorf("bridge %s: address: %w", h.cfg.Bridge, err)
	}
	if err := netlink.LinkSetMTU(bridge, h.cfg.MTU); err != nil {
		return fmt.Errorf("bridge %s: MTU: %w", h.cfg.Bridge, err)
	}
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: h.cfg.Gateway.AsSlice(), Mask: net.CIDRMask(h.cfg.Subnet.Bits(), 32)}}
	if err := netlink.AddrReplace(bridge, addr); err != nil {
		return fmt.Errorf("bridge %s: address %s: %w", h.cfg.Bridge, addr, err)
	}
	if err := netlink.LinkSetUp(bridge); err != nil {
		return fmt.Errorf("bridge %s: %w", h.cfg.Bridge, err)
	}
	return nil
}

func (h *linux) addBridge() (netlink.Link, error) {
	err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: h.cfg.Bridge}})
	if errors.Is(err, unix.EOPNOTSUPP) {
		err = fmt.Errorf("are there bridges in this kernel? %w: %w", errdefs.ErrUnavailable, err)
	}
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, err
	}
	return netlink.LinkByName(h.cfg.Bridge)
}

// setKnob writes a value below /proc/sys/net, of the calling thread's namespace,
// unless it is there. IPv6 may be missing altogether.
func setKnob(path, value string) error {
	file := filepath.Join("/proc/sys/net", path)
	have, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) && strings.HasPrefix(path, "ipv6/") || err == nil && strings.TrimSpace(string(have)) == value {
		return nil
	}
	if err == nil {
		err = os.WriteFile(file, []byte(value), 0)
	}
	if err != nil {
		return fmt.Errorf("set %s: %w", strings.ReplaceAll(path, "/", "."), err)
	}
	return nil
}

func (h *linux) sandbox(r *record, p *policy.Compiled) nft.Sandbox {
	return nft.Sandbox{Name: r.Anchor, Tap: r.Tap, Address: r.Address, MAC: net.HardwareAddr(r.MAC), Policy: p}
}

func (h *linux) attach(_ context.Context, r *record, p *policy.Compiled) error {
	tap, err := netlink.LinkByName(r.Tap)
	switch {
	case !errors.As(err, new(netlink.LinkNotFoundError)):
	case r.NetNS != "":
		tap, err = h.addVeth(r)
	case r.port != nil:
		tap, err = h.takePort(r)
	default:
		tap, err = h.addTap(r)
	}
	if err != nil {
		return fmt.Errorf("tap %s: %w", r.Tap, err)
	}
	if err := setKnob("ipv6/conf/"+r.Tap+"/disable_ipv6", "1"); err != nil {
		return err
	}
	if err := h.install(r, p); err != nil {
		return err
	}
	if err := h.join(tap, r); err != nil {
		return fmt.Errorf("tap %s: %w", r.Tap, err)
	}
	if err := netlink.LinkSetUp(tap); err != nil {
		return fmt.Errorf("tap %s: %w", r.Tap, err)
	}
	if r.NetNS != "" {
		return h.configureVeth(r)
	}
	return nil
}

// addTap makes a tap that outlives its users. It is down.
func (h *linux) addTap(r *record) (netlink.Link, error) {
	err := netlink.LinkAdd(&netlink.Tuntap{
		LinkAttrs: netlink.LinkAttrs{Name: r.Tap, MTU: r.MTU},
		Mode:      netlink.TUNTAP_MODE_TAP,
		Flags:     unix.IFF_NO_PI | unix.IFF_VNET_HDR,
	})
	if err != nil {
		return nil, err
	}
	return netlink.LinkByName(r.Tap)
}

// takePort makes a machine's tap the sandbox's. It is down, and ends with the
// machine.
func (h *linux) takePort(r *record) (netlink.Link, error) {
	// The namespace is the thread's.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	here, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, err
	}
	defer here.Close()
	if err := netns.Move(r.port.NetNS, r.port.Tap, here, r.Tap); err != nil {
		return nil, err
	}
	tap, err := netlink.LinkByName(r.Tap)
	if err != nil {
		return nil, err
	}
	if err := netlink.LinkSetMTU(tap, r.MTU); err != nil {
		return nil, fmt.Errorf("MTU %d: %w", r.MTU, err)
	}
	return tap, nil
}

// join makes the tap a private member of the bridge: it reaches the host alone.
// The bridge learns nothing from it, and sends it nothing that is for another.
func (h *linux) join(tap netlink.Link, r *record) error {
	bridge, err := netlink.LinkByName(h.cfg.Bridge)
	if err != nil {
		return err
	}
	if tap.Attrs().MasterIndex != bridge.Attrs().Index {
		if err := netlink.LinkSetMaster(tap, bridge); err != nil {
			return fmt.Errorf("join bridge: %w", err)
		}
	}
	for _, set := range []struct {
		name string
		f    func(netlink.Link, bool) error
		to   bool
	}{
		{"isolated", netlink.LinkSetIsolated, true},
		{"learning", netlink.LinkSetLearning, false},
		{"flood", netlink.LinkSetFlood, false},
	} {
		if err := set.f(tap, set.to); err != nil {
			return fmt.Errorf("set %s of the port: %w", set.name, err)
		}
	}
	err = netlink.NeighSet(&netlink.Neigh{
		LinkIndex: tap.Attrs().Index, Family: unix.AF_BRIDGE, State: netlink.NUD_PERMANENT | netlink.NUD_NOARP,
		Flags: netlink.NTF_MASTER, HardwareAddr: net.HardwareAddr(r.MAC),
	})
	if err != nil {
		return fmt.Errorf("forwarding entry: %w", err)
	}
	return nil
}

func (h *linux) detach(_ context.Context, r *record) (Released, error) {
	tap, err := netlink.LinkByName(r.Tap)
	switch {
	case errors.As(err, new(netlink.LinkNotFoundError)):
		tap = nil
	case err != nil:
		return Released{}, fmt.Errorf("tap %s: %w", r.Tap, err)
	default:
		// Before the rules, so that nothing passes without them.
		if err := netlink.LinkSetDown(tap); err != nil {
			return Released{}, fmt.Errorf("tap %s: %w", r.Tap, err)
		}
	}
	if err := h.rules.Remove(h.sandbox(r, nil)); err != nil {
		return Released{}, err
	}
	released, err := h.killStates(r.Address)
	if err != nil {
		return released, err
	}
	if tap == nil {
		return released, nil
	}
	if err := netlink.LinkDel(tap); err != nil && !errors.As(err, new(netlink.LinkNotFoundError)) && !errors.Is(err, unix.ENODEV) {
		return released, fmt.Errorf("tap %s: %w", r.Tap, err)
	}
	return released, nil
}

func (h *linux) check(_ context.Context, r *record) error {
	errs := []error{h.rules.Check(h.sandbox(r, nil))}
	bridge, err := netlink.LinkByName(h.cfg.Bridge)
	if err != nil {
		return errors.Join(append(errs, fmt.Errorf("bridge %s: %w", h.cfg.Bridge, err))...)
	}
	fenced, err := hasFence(bridge)
	errs = append(errs, err)
	tap, err := netlink.LinkByName(r.Tap)
	if err != nil {
		return errors.Join(append(errs, fmt.Errorf("tap %s: %w", r.Tap, err))...)
	}
	for _, want := range []struct {
		ok   bool
		what string
	}{
		{bridge.Attrs().Flags&net.FlagUp != 0, "the bridge is down"},
		{fenced, "the bridge has no fence"},
		{tap.Attrs().Flags&net.FlagUp != 0, "the tap is down"},
		{tap.Attrs().MasterIndex == bridge.Attrs().Index, "the tap is not on the bridge"},
	} {
		if !want.ok {
			errs = append(errs, errors.New(want.what))
		}
	}
	port, err := netlink.LinkGetProtinfo(tap)
	if err == nil && (!port.Isolated || port.Learning || port.Flood) {
		err = fmt.Errorf("the tap is no private member of the bridge: %+v", port)
	}
	return errors.Join(append(errs, err)...)
}

func (h *linux) setPolicy(_ context.Context, r *record, p *policy.Compiled) error {
	return h.install(r, p)
}

// install makes the rules of a policy in place of the record's.
func (h *linux) install(r *record, p *policy.Compiled) error {
	s := h.sandbox(r, p)
	was, err := r.Policy.Compile(r.DNS)
	if err != nil {
		return err
	}
	s.Was = was
	return h.rules.Install(s)
}

func (h *linux) resolved(_ context.Context, r *record, p *policy.Compiled, i int, addrs []netip.Addr, ttl time.Duration) error {
	return h.rules.Resolved(h.sandbox(r, p), i, addrs, ttl)
}

func (h *linux) counters(_ context.Context, records []*record) (map[string]Counters, error) {
	denied, err := h.rules.Denied()
	if err != nil {
		return nil, err
	}
	all := map[string]Counters{}
	for _, r := range records {
		c := Counters{Denied: denied[r.Anchor].Denied, Spoofed: denied[r.Anchor].Spoofed}
		// A tap that is not there has carried nothing.
		if tap, err := netlink.LinkByName(r.Tap); err == nil && tap.Attrs().Statistics != nil {
			s := tap.Attrs().Statistics
			c.SentPackets, c.SentBytes, c.ReceivedPackets, c.ReceivedBytes = s.RxPackets, s.RxBytes, s.TxPackets, s.TxBytes
		}
		all[r.Anchor] = c
	}
	return all, nil
}

func (h *linux) sweep(_ context.Context, known func(anchor, tap string) bool) ([]string, error) {
	var removed []string
	var errs []error
	links, err := netlink.LinkList()
	if err != nil {
		return nil, err
	}
	for _, l := range links {
		name := l.Attrs().Name
		if !h.isTap(name) || l.Type() != "tuntap" && l.Type() != "veth" || known("", name) {
			continue
		}
		if err := netlink.LinkDel(l); err != nil {
			errs = append(errs, fmt.Errorf("tap %s: %w", name, err))
			continue
		}
		removed = append(removed, "tap "+name)
	}
	names, err := h.rules.Sandboxes()
	if err != nil {
		return removed, errors.Join(append(errs, err)...)
	}
	for _, name := range slices.DeleteFunc(names, func(name string) bool { return known(name, "") }) {
		if err := h.rules.RemoveAll(name); err != nil {
			errs = append(errs, err)
			continue
		}
		removed = append(removed, "rules "+name)
	}
	return removed, errors.Join(errs...)
}

func (h *linux) destroy(context.Context) error {
	bridge, err := netlink.LinkByName(h.cfg.Bridge)
	if err == nil {
		err = netlink.LinkDel(bridge)
	}
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		err = nil
	}
	return errors.Join(err, h.rules.Destroy())
}

// watch implements watcher.
func (h *linux) watch(ctx context.Context, removed func()) error {
	return h.rules.Watch(ctx, removed)
}

// stopped implements stopLogger.
func (h *linux) stopped(ctx context.Context, f func(anchor string, s Stopped)) error {
	if h.cfg.LogGroup == 0 {
		return fmt.Errorf("network %s: log_group is not set, the kernel's log has them: %w", h.cfg.Bridge, errdefs.ErrNotImplemented)
	}
	return h.rules.Log(ctx, func(s nft.Stopped) {
		f(s.Sandbox, Stopped{Why: s.Why, EtherType: s.EtherType, Protocol: s.Protocol, Source: s.Source, Destination: s.Destination, MAC: s.MAC})
	})
}
