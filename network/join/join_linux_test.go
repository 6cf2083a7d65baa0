package join

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/netns"
)

func in(t *testing.T, ns *os.File, f func() error) {
	t.Helper()
	if err := netns.Do(ns, f); err != nil {
		t.Fatal(err)
	}
}

func newNS(t *testing.T) *os.File {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

func up(name string, addr string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	a, err := netlink.ParseAddr(addr)
	if err != nil {
		return err
	}
	return errors.Join(netlink.AddrAdd(link, a), netlink.LinkSetUp(link))
}

// podNS is a namespace as a CNI plugin leaves it, with the other end of its
// interface in host.
func podNS(t *testing.T, host *os.File) *Namespace {
	t.Helper()
	n, err := New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	in(t, host, func() error {
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "veth0", MTU: 1400}, PeerName: "eth0", PeerMTU: 1400, PeerNamespace: netlink.NsFd(n.file.Fd())}
		return errors.Join(netlink.LinkAdd(veth), up("veth0", "10.9.0.1/24"))
	})
	in(t, n.file, func() error {
		if err := up("eth0", "10.9.0.2/24"); err != nil {
			return err
		}
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.IPv4(10, 9, 0, 1)})
	})
	return n
}

// A guest behind the tap answers at the interface's address, with what Connect
// has said of it.
func TestGuestTakesTheInterfacesPlace(t *testing.T) {
	host := newNS(t)
	n := podNS(t, host)
	mac, err := n.AddTap()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.AddTap(); !errdefs.IsAlreadyExists(err) {
		t.Errorf("a second tap: %v, want already exists", err)
	}
	var wire *os.File
	in(t, n.file, func() (err error) { wire, err = openTap(Tap); return err })
	i := takesPlace(t, host, n, wire)
	if len(mac) != 6 || slices.Equal(mac, i.MAC) {
		t.Errorf("the tap's address is %s, the interface's %s", mac, i.MAC)
	}
}

// A machine that was there before brings its tap, from where it is; or it is in
// the namespace that is to be filled.
func TestMachineBringsItsTap(t *testing.T) {
	for name, same := range map[string]bool{"from elsewhere": false, "it is in the namespace": true} {
		t.Run(name, func(t *testing.T) {
			host := newNS(t)
			n := podNS(t, host)
			machine := n.file
			if !same {
				machine = newNS(t)
			}
			var wire *os.File
			in(t, machine, func() (err error) { wire, err = openTap("port"); return err })
			from := (&Namespace{file: machine}).Path()
			if err := n.Plug(from, "none"); !errdefs.IsNotFound(err) {
				t.Errorf("a tap that is not there: %v", err)
			}
			if err := n.Plug(from, "port"); err != nil {
				t.Fatal(err)
			}
			if err := n.Plug(from, "port"); !errdefs.IsAlreadyExists(err) {
				t.Errorf("a second tap: %v, want already exists", err)
			}
			takesPlace(t, host, n, wire)
			n.path = n.Path()
			if err := n.Receipt().Undo(t.Context()); err != nil {
				t.Error(err)
			}
			in(t, n.file, func() error {
				if _, err := netlink.LinkByName(Tap); !errors.As(err, new(netlink.LinkNotFoundError)) {
					t.Errorf("the tap after the undo: %v", err)
				}
				return nil
			})
		})
	}
}

// takesPlace connects a guest that has the other end of the tap, and has it
// answer a host.
func takesPlace(t *testing.T, host *os.File, n *Namespace, wire *os.File) *Interface {
	t.Helper()
	var i *Interface
	for range 2 {
		var err error
		if i, err = n.Connect(); err != nil {
			t.Fatal(err)
		}
	}
	gateway := netip.MustParseAddr("10.9.0.1")
	want := Route{Destination: netip.MustParsePrefix("0.0.0.0/0"), Gateway: gateway}
	if i.Name != "eth0" || i.MTU != 1400 || !slices.Equal(i.Addresses, []netip.Prefix{netip.MustParsePrefix("10.9.0.2/24")}) ||
		!slices.Contains(i.Routes, want) || len(i.Routes) != 1 || len(i.Ignored) != 0 {
		t.Errorf("interface: %+v", i)
	}

	guest := newNS(t)
	var inside *os.File
	in(t, guest, func() (err error) {
		if inside, err = openTap("eth0"); err != nil {
			return err
		}
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return errors.Join(netlink.LinkSetHardwareAddr(link, i.MAC), up("eth0", "10.9.0.2/24"))
	})
	go pump(wire, inside)
	go pump(inside, wire)
	t.Cleanup(func() { wire.Close(); inside.Close() })

	var l net.Listener
	in(t, guest, func() (err error) { l, err = net.Listen("tcp4", ":80"); return err })
	t.Cleanup(func() { l.Close() })
	accepted := make(chan struct{})
	go func() {
		if c, err := l.Accept(); err == nil {
			c.Close()
			close(accepted)
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	in(t, host, func() error {
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp4", "10.9.0.2:80")
		if err == nil {
			c.Close()
		}
		return err
	})
	select {
	case <-accepted:
	case <-ctx.Done():
		t.Error("the guest was not reached")
	}
	return i
}

// What is undone leaves the namespace as the plugin left it, and another one at
// the same path alone.
func TestUndo(t *testing.T) {
	host := newNS(t)
	n := podNS(t, host)
	n.path = n.Path()
	names := func() (all []string) {
		in(t, n.file, func() error {
			links, err := netlink.LinkList()
			for _, l := range links {
				all = append(all, l.Attrs().Name)
				qdiscs, _ := netlink.QdiscList(l)
				for _, q := range qdiscs {
					if q.Type() == "ingress" {
						all = append(all, "ingress of "+l.Attrs().Name)
					}
				}
			}
			return err
		})
		return all
	}
	before := names()
	r := n.Receipt()
	if _, err := n.AddTap(); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Connect(); err != nil {
		t.Fatal(err)
	}
	connected := names()
	elsewhere, another := r, r
	elsewhere.Inode++
	another.Mark = newMark()
	for what, other := range map[string]Receipt{"another namespace": elsewhere, "another machine": another} {
		if err := other.Undo(t.Context()); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(names(), connected) {
			t.Errorf("a receipt for %s was undone", what)
		}
	}
	for range 2 {
		if err := r.Undo(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := names(); !slices.Equal(got, before) {
			t.Errorf("left: %q, want %q", got, before)
		}
	}
	if err := (Receipt{Path: "/run/netns/none"}).Undo(t.Context()); err != nil {
		t.Errorf("a namespace that is gone: %v", err)
	}
}

// Who is killed while he makes a tap leaves one without its name. It goes, and
// that of another machine stays.
func TestUndoWhatWasCutOff(t *testing.T) {
	newNS(t)
	n, err := New()
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	n.path = n.Path()
	if _, err := n.AddTap(); err != nil {
		t.Fatal(err)
	}
	second, err := Open(n.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	r := second.Receipt()
	if _, err := second.AddTap(); !errdefs.IsAlreadyExists(err) {
		t.Errorf("a second tap: %v, want already exists", err)
	}
	left := func() (all []string) {
		in(t, n.file, func() error {
			links, err := netlink.LinkList()
			for _, l := range links {
				if l.Type() == "tuntap" {
					all = append(all, l.Attrs().Name)
				}
			}
			return err
		})
		return all
	}
	if got := left(); !slices.Equal(got, []string{Tap}) {
		t.Errorf("taps %q, want that of the first", got)
	}
	in(t, n.file, func() error {
		return netlink.LinkAdd(&netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: r.Mark}, Mode: netlink.TUNTAP_MODE_TAP})
	})
	if got := left(); len(got) != 2 {
		t.Fatalf("taps %q", got)
	}
	for range 2 {
		if err := r.Undo(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := left(); !slices.Equal(got, []string{Tap}) {
			t.Errorf("taps %q, want that of the first", got)
		}
	}
}

func TestEmptyNamespace(t *testing.T) {
	newNS(t)
	n, err := New()
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if _, err := n.AddTap(); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Connect(); !errdefs.IsNotFound(err) {
		t.Errorf("got %v, want not found", err)
	}
	if _, err := Open(t.TempDir()); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a directory: %v, want invalid argument", err)
	}
}

func openTap(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	req, err := unix.NewIfreq(name)
	if err == nil {
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// pump copies frames: one read is one frame, and must be one write.
func pump(dst, src *os.File) {
	buf := make([]byte, 128<<10)
	for {
		n, err := src.Read(buf)
		if err != nil {
			return
		}
		dst.Write(buf[:n])
	}
}
