package link

import (
	"context"
	"encoding/binary"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/iface"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// longer than anything here takes on a busy machine.
const patience = 30 * time.Second

// vnetHeader is what is before every frame: nothing, on FreeBSD's taps.
var vnetHeader [0]byte

// Flags of a TCP segment: RFC 9293 section 3.1.
const (
	tcpSYN = 0x02
	tcpACK = 0x10
)

// answeredPort is the port that a TCP segment in a frame is for.
func answeredPort(frame []byte) (uint16, bool) {
	const ip6, tcp = 14, 14 + 40
	if len(frame) < tcp+4 || frame[ip6]>>4 != 6 || frame[ip6+6] != unix.IPPROTO_TCP {
		return 0, false
	}
	return binary.BigEndian.Uint16(frame[tcp+2:]), true
}

func openLink(t *testing.T) (*Link, *receipt.Book) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: makes taps")
	}
	if err := CheckFence(t.Context()); errdefs.IsFailedPrecondition(err) {
		t.Skip(err)
	}
	book, err := receipt.Open(filepath.Join(t.TempDir(), "receipts"))
	if err != nil {
		t.Fatal(err)
	}
	l, err := Open(t.Context(), book)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l, book
}

func TestTap(t *testing.T) {
	l, book := openLink(t)
	ifi, err := net.InterfaceByName(l.Tap())
	if err != nil {
		t.Fatal(err)
	}
	if ifi.HardwareAddr.String() != agentproto.HostLinkMAC.String() || ifi.Flags&net.FlagUp == 0 {
		t.Errorf("MAC %s, flags %s", ifi.HardwareAddr, ifi.Flags)
	}
	addrs, err := ifi.Addrs()
	if err != nil || len(addrs) != 1 || !strings.HasPrefix(addrs[0].String(), agentproto.HostLinkAddr.String()) {
		t.Errorf("addresses %v, %v", addrs, err)
	}
	out, err := run(t.Context(), "/sbin/ifconfig", "-g", Group)
	if err != nil || !slices.Contains(strings.Fields(string(out)), l.Tap()) {
		t.Errorf("group: %q, %v", out, err)
	}
	out, err = run(t.Context(), "/usr/sbin/ndp", "-an")
	if err != nil || !strings.Contains(string(out), agentproto.GuestLinkAddr.String()+"%"+l.Tap()) {
		t.Errorf("neighbours: %v\n%s", err, out)
	}
	if book.Len() != 1 || l.tap.New {
		t.Errorf("%d receipts, %+v", book.Len(), l.tap)
	}
	for range 2 {
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := net.InterfaceByName(l.Tap()); err == nil || book.Len() != 0 {
		t.Errorf("after close: %v, %d receipts", err, book.Len())
	}
	if _, err := l.Dial(t.Context(), 1); !errors.Is(err, os.ErrClosed) {
		t.Errorf("dial a closed link: %v", err)
	}
}

func TestReceiptOfATap(t *testing.T) {
	l, _ := openLink(t)
	// Somebody else's tap, by the mark.
	if err := (tapReceipt{Name: l.Tap(), Mark: "another"}).Undo(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := net.InterfaceByName(l.Tap()); err != nil {
		t.Fatalf("it was destroyed: %v", err)
	}
	// Its device is open: the destruction is given up with ctx.
	dev, err := os.OpenFile("/dev/"+l.Tap(), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := l.tap.Undo(ctx); err == nil {
		t.Error("an open tap was destroyed")
	}
	dev.Close()
	for range 2 {
		if err := l.tap.Undo(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if _, err := iface.Description(l.Tap()); !errors.Is(err, unix.ENXIO) {
		t.Errorf("after the undo: %v", err)
	}
}

// A tap is without a mark for a moment after the kernel has made it.
func TestReceiptOfATapWithoutMark(t *testing.T) {
	l, book := openLink(t)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	create := func() {
		t.Helper()
		if err := iface.Create(l.Tap()); err != nil {
			t.Fatal(err)
		}
	}
	create()
	made := tapReceipt{Name: l.Tap(), Mark: l.Mark()}
	if err := made.Undo(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := iface.Description(l.Tap()); err != nil {
		t.Fatalf("a tap that should have had a mark: %v", err)
	}
	made.New = true
	if _, err := book.Write(made); err != nil {
		t.Fatal(err)
	}
	if err := book.UndoAll(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := iface.Description(l.Tap()); !errors.Is(err, unix.ENXIO) {
		t.Errorf("a tap whose maker was killed is left: %v", err)
	}
}

func TestAnyTapIsNotTaken(t *testing.T) {
	l, _ := openLink(t)
	if err := iface.Create(l.Tap()); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a tap that exists was made again: %v", err)
	}
}

// TestSilence: whatever a guest says unasked, it gets no answer. A segment that
// looks like one of a connection is answered, which shows that the others
// would have been.
func TestSilence(t *testing.T) {
	l, _ := openLink(t)
	guest, err := os.OpenFile("/dev/"+l.Tap(), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer guest.Close()
	listener, err := net.Listen("tcp6", "[::]:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	open := uint16(listener.Addr().(*net.TCPAddr).Port)

	answers := make(chan uint16, 16) // by the port that was answered
	go func() {
		buf := make([]byte, 64<<10)
		for {
			n, err := guest.Read(buf)
			if err != nil {
				return
			}
			if p, ok := answeredPort(buf[:n]); ok {
				answers <- p
			}
		}
	}()
	const unasked, sentinel = 40000, 7777
	for _, frame := range [][]byte{
		tcpSegment(agentproto.GuestLinkAddr, unasked, open, tcpSYN),
		tcpSegment(agentproto.GuestLinkAddr, unasked+1, 9, tcpSYN),
		packet(agentproto.GuestLinkAddr, agentproto.HostLinkAddr, unix.IPPROTO_ICMPV6, []byte{128, 0, 0, 0, 0, 1, 0, 1}, 2),
		tcpSegment(agentproto.GuestLinkAddr, sentinel, 9, tcpACK),
	} {
		if _, err := guest.Write(frame); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case p := <-answers:
		if p != sentinel {
			t.Errorf("the guest got an answer at port %d", p)
		}
	case <-time.After(patience):
		t.Error("no answer at all: this proves nothing")
	}
}
