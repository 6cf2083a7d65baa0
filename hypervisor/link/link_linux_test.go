package link

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/netns"
	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
)

// longer than anything here takes on a busy machine.
const patience = 20 * time.Second

func requireRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
}

func openLink(t *testing.T) *Link {
	t.Helper()
	requireRoot(t)
	l, err := Open(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// guest is a network namespace that stands for a guest: what it sends comes
// out of the link's tap as if from a machine.
type guest struct {
	t         *testing.T
	namespace *os.File
	index     int
}

func attachGuest(t *testing.T, l *Link) *guest {
	t.Helper()
	g := &guest{t: t}
	var tap *os.File
	ns, err := netns.NewWith(func() (err error) {
		if tap, err = openTap("eth0"); err != nil {
			return err
		}
		g.index, err = configure("eth0", agentproto.GuestLinkMAC, agentproto.GuestLinkAddr, agentproto.HostLinkMAC, agentproto.HostLinkAddr)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	g.namespace = ns
	wire := func(dst, src *os.File) {
		// One read is one frame, and must be one write.
		buf := make([]byte, 128<<10)
		for {
			n, err := src.Read(buf)
			if err != nil {
				return
			}
			dst.Write(buf[:n])
		}
	}
	go wire(l.tap, tap)
	go wire(tap, l.tap)
	t.Cleanup(func() { tap.Close(); ns.Close() })
	return g
}

// listen accepts TCP connections in a namespace and answers with what it reads.
func listen(t *testing.T, namespace *os.File, port int) net.Listener {
	t.Helper()
	var l net.Listener
	err := netns.Do(namespace, func() (err error) {
		l, err = net.ListenTCP("tcp6", &net.TCPAddr{IP: net.IPv6unspecified, Port: port})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.Copy(c, c)
			}()
		}
	}()
	return l
}

func TestHostDialsGuest(t *testing.T) {
	l := openLink(t)
	g := attachGuest(t, l)
	listen(t, g.namespace, int(agentproto.PortControl))

	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	conn, err := l.Dial(ctx, agentproto.PortControl)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	const size = 4 << 20
	go func() {
		io.CopyN(conn, zeros{}, size)
		conn.(*net.TCPConn).CloseWrite()
	}()
	if n, err := io.Copy(io.Discard, conn); err != nil || n != size {
		t.Errorf("%d bytes of %d came back: %v", n, size, err)
	}
	// The guest's kernel answers a closed port, so that the error is typed.
	if _, err := l.Dial(ctx, 9); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dial a closed port: %v, want connection refused", err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

func TestLinkVanishesWithItsFiles(t *testing.T) {
	l := openLink(t)
	g := attachGuest(t, l)
	listen(t, g.namespace, 1)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	conn, err := l.Dial(ctx, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	device := func() error {
		return netns.Do(l.namespace, func() error { _, err := netlink.LinkByName(device); return err })
	}
	if err := device(); err != nil {
		t.Fatal(err)
	}
	if err := l.Tap().Close(); err != nil {
		t.Fatal(err)
	}
	if err := device(); !errors.As(err, new(netlink.LinkNotFoundError)) {
		t.Errorf("after the last close of the tap: %v, want no such device", err)
	}
	for range 2 {
		if err := l.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	}
	if _, err := l.Dial(ctx, 1); !errors.Is(err, os.ErrClosed) {
		t.Errorf("dial a closed link: %v, want closed", err)
	}
}

func TestAdopt(t *testing.T) {
	l := openLink(t)
	g := attachGuest(t, l)
	listen(t, g.namespace, 1)
	adopted, err := Adopt(l.Tap())
	if err != nil {
		t.Fatal(err)
	}
	defer adopted.Close()
	// The tap stays with the monitor, of which the test does the part.
	if err := l.namespace.Close(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	conn, err := adopted.Dial(ctx, 1)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if err := adopted.Close(); err != nil {
		t.Error(err)
	}
	if _, err := Adopt(g.namespace); err == nil {
		t.Error("adopted what is no tap")
	}
}

func TestDialRefusesBadPorts(t *testing.T) {
	l := &Link{}
	for _, port := range []uint32{0, 65536} {
		if _, err := l.Dial(t.Context(), port); !errdefs.IsInvalidArgument(err) {
			t.Errorf("port %d: %v, want invalid argument", port, err)
		}
	}
}

func BenchmarkOpen(b *testing.B) {
	if os.Getuid() != 0 {
		b.Skip("needs root: makes network namespaces")
	}
	for b.Loop() {
		l, err := Open(b.Context(), nil)
		if err != nil {
			b.Fatal(err)
		}
		l.Close()
	}
}
