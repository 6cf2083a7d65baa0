package link

import (
	"encoding/binary"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/netns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// vnetHeader is an empty struct virtio_net_hdr, which is before every frame.
var vnetHeader [10]byte

const (
	listening = 2222
	closed    = 3333
	// sentinel is the source port of a segment that every filter lets through,
	// and that the host answers with a reset: an answer to it means that what
	// was sent before has been dealt with.
	sentinel = 7777
)

func sentinelSegment() []byte {
	return tcpSegment(agentproto.GuestLinkAddr, sentinel, closed, tcpACK)
}

// answers writes a frame to the tap as a guest would, and counts what the host
// says to it.
func answers(t *testing.T, tap *os.File, frame []byte) int {
	t.Helper()
	for _, f := range [][]byte{frame, sentinelSegment()} {
		if _, err := tap.Write(f); err != nil {
			t.Fatal(err)
		}
	}
	tap.SetReadDeadline(time.Now().Add(patience))
	buf := make([]byte, 64<<10)
	for n := 0; ; n++ {
		size, err := tap.Read(buf)
		if err != nil {
			t.Fatalf("no answer to the sentinel: %v", err)
		}
		const ports = len(vnetHeader) + 14 + 40
		if size >= ports+4 && buf[ports-34] == unix.IPPROTO_TCP && binary.BigEndian.Uint16(buf[ports+2:]) == sentinel {
			return n
		}
	}
}

func TestFilterSilencesEverythingUnasked(t *testing.T) {
	l := openLink(t)
	listen(t, l.namespace, listening)
	// The same without the filter, to see that there would have been an answer.
	var openTapFile *os.File
	unfiltered, err := netns.NewWith(func() (err error) {
		if openTapFile, err = openTap(device); err != nil {
			return err
		}
		_, err = configure(device, agentproto.HostLinkMAC, agentproto.HostLinkAddr, agentproto.GuestLinkMAC, agentproto.GuestLinkAddr)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer unfiltered.Close()
	defer openTapFile.Close()
	listen(t, unfiltered, listening)

	guest, host := agentproto.GuestLinkAddr, agentproto.HostLinkAddr
	other := netip.MustParseAddr("fe80::66")
	solicitation := append([]byte{135, 0, 0, 0, 0, 0, 0, 0}, host.AsSlice()...)
	solicitation = append(solicitation, 1, 1)
	solicitation = append(solicitation, agentproto.GuestLinkMAC...)

	for _, c := range []struct {
		name  string
		frame []byte
	}{
		{"SYN to a listener", tcpSegment(guest, 40000, listening, tcpSYN)},
		{"SYN to a closed port", tcpSegment(guest, 40000, closed, tcpSYN)},
		{"ACK from an address that is not the guest's", tcpSegment(other, 40000, closed, tcpACK)},
		{"UDP", packet(guest, host, unix.IPPROTO_UDP, []byte{0x9c, 0x40, 0x0d, 0x05, 0, 8, 0, 0}, 6)},
		{"echo request", packet(guest, host, unix.IPPROTO_ICMPV6, []byte{128, 0, 0, 0, 0, 1, 0, 1}, 2)},
		{"neighbour solicitation", packet(guest, host, unix.IPPROTO_ICMPV6, solicitation, 2)},
		{"neighbour solicitation from an address that is not the guest's", packet(other, host, unix.IPPROTO_ICMPV6, solicitation, 2)},
	} {
		t.Run(c.name, func(t *testing.T) {
			if n := answers(t, openTapFile, c.frame); n == 0 {
				t.Error("without the filter there is no answer either: this proves nothing")
			}
			if n := answers(t, l.tap, c.frame); n != 0 {
				t.Errorf("%d answers, want none", n)
			}
		})
	}

	var known []netlink.Neigh
	if err := netns.Do(l.namespace, func() (err error) {
		known, err = netlink.NeighList(l.index, netlink.FAMILY_V6)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	for _, n := range known {
		if !n.IP.IsMulticast() && n.IP.String() != guest.String() {
			t.Errorf("the guest put %s into the host's neighbour table", n.IP)
		}
	}
}
