package join

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/netns"
)

// Supported says whether this system has network namespaces.
const Supported = true

// Namespace is a network namespace of the host. Methods are for one caller at a
// time.
type Namespace struct {
	file *os.File
	// path is where it was found, empty for one of New's.
	path string
	// mark tells the tap of this machine from another's, see Receipt.
	mark string
}

// Open opens the namespace at path. errdefs.ErrNotFound if there is none.
func Open(path string) (*Namespace, error) {
	f, err := netns.Open(path)
	if err != nil {
		return nil, err
	}
	return &Namespace{file: f, path: path, mark: newMark()}, nil
}

// New makes a namespace for a client to fill. It ends with the last of Close, the
// end of this process and the end of the machine in it, and needs no receipt.
func New() (*Namespace, error) {
	f, err := netns.New()
	if err != nil {
		return nil, err
	}
	return &Namespace{file: f, mark: newMark()}, nil
}

// Path leads to the namespace for as long as this process has it open.
func (n *Namespace) Path() string {
	return "/proc/" + strconv.Itoa(os.Getpid()) + "/fd/" + strconv.Itoa(int(n.file.Fd()))
}

// Receipt is what AddTap, Plug and Connect take, for a namespace of Open's.
func (n *Namespace) Receipt() Receipt {
	return Receipt{Path: n.path, Inode: inode(n.file), Mark: n.mark}
}

func inode(f *os.File) uint64 {
	st, err := f.Stat()
	if err != nil {
		return 0
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return 0
	}
	return sys.Ino
}

// Close lets go of the namespace.
func (n *Namespace) Close() error { return n.file.Close() }

// Connect connects the namespace's interface with the tap and says what the
// guest must make its own. errdefs.ErrNotFound if the namespace has no interface
// yet. It may be called again.
func (n *Namespace) Connect() (i *Interface, err error) {
	err = netns.Do(n.file, func() error {
		tap, err := netlink.LinkByName(Tap)
		if err != nil {
			return err
		}
		link, ignored, err := choose()
		if err != nil {
			return err
		}
		if i, err = describe(link); err != nil {
			return err
		}
		i.Ignored = ignored
		if err := netlink.LinkSetMTU(tap, i.MTU); err != nil {
			return fmt.Errorf("MTU %d of the tap: %w", i.MTU, err)
		}
		for _, way := range [][2]netlink.Link{{link, tap}, {tap, link}} {
			if err := redirect(way[0], way[1]); err != nil {
				return fmt.Errorf("redirect %s to %s: %w", way[0].Attrs().Name, way[1].Attrs().Name, err)
			}
		}
		return netlink.LinkSetUp(tap)
	})
	if err != nil {
		return nil, fmt.Errorf("join network namespace %s: %w", n.path, err)
	}
	return i, nil
}

// choose picks the interface of the thread's namespace that has the default
// route, or else the first, and names the others.
func choose() (netlink.Link, []string, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, nil, err
	}
	var found []netlink.Link
	for _, l := range links {
		a := l.Attrs()
		// The kernel puts devices of its own into every namespace ("tunl0"), which
		// are down.
		if a.Flags&net.FlagLoopback == 0 && a.Flags&net.FlagUp != 0 && a.Name != Tap && len(a.HardwareAddr) == 6 {
			found = append(found, l)
		}
	}
	if len(found) == 0 {
		return nil, nil, fmt.Errorf("no interface is up in it: %w", errdefs.ErrNotFound)
	}
	best := 0
	for i, l := range found {
		routes, err := netlink.RouteList(l, netlink.FAMILY_ALL)
		if err != nil {
			return nil, nil, fmt.Errorf("routes: %w", err)
		}
		if hasDefault(routes) {
			best = i
			break
		}
	}
	var ignored []string
	for i, l := range found {
		if i != best {
			ignored = append(ignored, l.Attrs().Name)
		}
	}
	return found[best], ignored, nil
}

func hasDefault(routes []netlink.Route) bool {
	for _, r := range routes {
		if r.Dst == nil {
			return true
		}
		if ones, _ := r.Dst.Mask.Size(); ones == 0 {
			return true
		}
	}
	return false
}

func describe(link netlink.Link) (*Interface, error) {
	a := link.Attrs()
	i := &Interface{Name: a.Name, MAC: a.HardwareAddr, MTU: a.MTU}
	addrs, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("addresses: %w", err)
	}
	for _, addr := range addrs {
		// The guest makes its own link-local one.
		if p, ok := prefix(addr.IPNet); ok && !p.Addr().IsLinkLocalUnicast() {
			i.Addresses = append(i.Addresses, p)
		}
	}
	routes, err := netlink.RouteList(link, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("routes: %w", err)
	}
	for _, r := range routes {
		// The kernel's own come with the addresses.
		if r.Protocol == unix.RTPROT_KERNEL || r.Type != unix.RTN_UNICAST {
			continue
		}
		out := Route{Metric: r.Priority, OnLink: r.Flags&int(netlink.FLAG_ONLINK) != 0}
		if gw, ok := netip.AddrFromSlice(r.Gw); ok {
			out.Gateway = gw.Unmap()
		}
		if src, ok := netip.AddrFromSlice(r.Src); ok {
			out.Source = src.Unmap()
		}
		dst, ok := prefix(r.Dst)
		if r.Dst == nil {
			dst, ok = netip.PrefixFrom(netip.IPv4Unspecified(), 0), true
			if r.Family == unix.AF_INET6 {
				dst = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
			}
		}
		if !ok || dst.Addr().IsLinkLocalUnicast() && dst.Addr().Is6() || dst.Addr().IsMulticast() {
			continue
		}
		out.Destination = dst
		i.Routes = append(i.Routes, out)
	}
	return i, nil
}

func prefix(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	addr, ok := netip.AddrFromSlice(n.IP)
	if !ok {
		return netip.Prefix{}, false
	}
	addr = addr.Unmap()
	ones, bits := n.Mask.Size()
	if bits != addr.BitLen() {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(addr, ones), true
}

// priority is that of the one filter on each side.
const priority = 1

// redirect sends out by one device what comes in by the other.
func redirect(from, to netlink.Link) error {
	parent := uint32(netlink.MakeHandle(0xffff, 0))
	qdisc := &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: from.Attrs().Index, Handle: parent, Parent: netlink.HANDLE_INGRESS}}
	if err := netlink.QdiscAdd(qdisc); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("queueing discipline: %w", err)
	}
	filter := &netlink.U32{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: from.Attrs().Index, Parent: parent, Priority: priority, Protocol: unix.ETH_P_ALL},
		Actions:     []netlink.Action{netlink.NewMirredAction(to.Attrs().Index)},
	}
	old, err := netlink.FilterList(from, parent)
	if err != nil {
		return fmt.Errorf("filters: %w", err)
	}
	for _, f := range old {
		if leadsTo(f, to.Attrs().Index) {
			return nil
		}
	}
	if err := netlink.FilterAdd(filter); err != nil {
		return fmt.Errorf("filter: %w", err)
	}
	return nil
}

func leadsTo(f netlink.Filter, index int) bool {
	u, ok := f.(*netlink.U32)
	if !ok {
		return false
	}
	for _, a := range u.Actions {
		if m, ok := a.(*netlink.MirredAction); ok && m.Ifindex == index {
			return true
		}
	}
	return false
}

// Undo implements receipt.Resource.
func (r Receipt) Undo(context.Context) error {
	f, err := netns.Open(r.Path)
	if errdefs.IsNotFound(err) || errdefs.IsInvalidArgument(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if inode(f) != r.Inode {
		return nil
	}
	if err := netns.Do(f, r.disconnect); err != nil {
		return fmt.Errorf("leave network namespace %s: %w", r.Path, err)
	}
	return nil
}

// disconnect undoes Loopback, Connect, and AddTap or Plug in the thread's
// namespace, if they were those of the receipt's machine.
func (r Receipt) disconnect() error {
	// One that did not get its name.
	unnamed, err := netlink.LinkByName(r.Mark)
	if err == nil {
		return netlink.LinkDel(unnamed)
	}
	if !errors.As(err, new(netlink.LinkNotFoundError)) {
		return err
	}
	tap, err := netlink.LinkByName(Tap)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return noRedirect()
	}
	if err != nil {
		return err
	}
	if tap.Attrs().Alias != r.Mark {
		return nil
	}
	if err := noRedirect(); err != nil {
		return err
	}
	links, err := netlink.LinkList()
	if err != nil {
		return err
	}
	parent := uint32(netlink.MakeHandle(0xffff, 0))
	for _, l := range links {
		filters, err := netlink.FilterList(l, parent)
		if err != nil {
			continue // It has no such queueing discipline.
		}
		for _, f := range filters {
			if !leadsTo(f, tap.Attrs().Index) {
				continue
			}
			qdisc := &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Handle: parent, Parent: netlink.HANDLE_INGRESS}}
			if err := netlink.QdiscDel(qdisc); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
				return fmt.Errorf("queueing discipline of %s: %w", l.Attrs().Name, err)
			}
			break
		}
	}
	return netlink.LinkDel(tap)
}
