package link

import (
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/iface"
)

func openPort(t *testing.T) *Port {
	t.Helper()
	_, book := openLink(t)
	p, err := OpenPort(t.Context(), book)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// TestPort: it is down and fenced, and gone when it is closed.
func TestPort(t *testing.T) {
	p := openPort(t)
	ifi, err := net.InterfaceByName(p.Tap())
	if err != nil || ifi.Flags&net.FlagUp != 0 {
		t.Errorf("interface %+v, %v", ifi, err)
	}
	out, err := run(t.Context(), "/sbin/ifconfig", "-g", Group)
	if err != nil || !slices.Contains(strings.Fields(string(out)), p.Tap()) {
		t.Errorf("group: %q, %v", out, err)
	}
	for range 2 {
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := net.InterfaceByName(p.Tap()); err == nil {
		t.Error("it is there after it was closed")
	}
}

// TestTakenPort: a port that bears somebody else's mark is that one's.
func TestTakenPort(t *testing.T) {
	p := openPort(t)
	mine := tapReceipt{Name: p.Tap(), Mark: "cubenet0 a"}
	if err := iface.Describe(p.Tap(), mine.Mark); err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := net.InterfaceByName(p.Tap()); err != nil {
		t.Errorf("its machine has destroyed it: %v", err)
	}
	if err := mine.Undo(t.Context()); err != nil {
		t.Errorf("after its machine has let go: %v", err)
	}
	if _, err := net.InterfaceByName(p.Tap()); err == nil {
		t.Error("it is there still")
	}
}
