package join

import (
	"net"
	"testing"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
)

// Connections to the namespace's loopback are had with their port, until Undo.
func TestLoopback(t *testing.T) {
	n := podNS(t, newNS(t))
	n.path = n.Path()
	in(t, n.file, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	l, err := n.Loopback()
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, addr := range []string{"127.0.0.1:8080", "127.0.0.9:53"} {
		want, err := net.ResolveTCPAddr("tcp4", addr)
		if err != nil {
			t.Fatal(err)
		}
		in(t, n.file, func() error {
			client, err := net.DialTCP("tcp4", nil, want)
			if err != nil {
				return err
			}
			return client.Close()
		})
		conn, port, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
		if int(port) != want.Port {
			t.Errorf("connection to %s is for port %d", addr, port)
		}
	}
	if err := n.Receipt().Undo(t.Context()); err != nil {
		t.Fatal(err)
	}
	in(t, n.file, func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		tables, err := c.ListTables()
		if len(tables) > 0 {
			t.Errorf("%d tables are left", len(tables))
		}
		return err
	})
}
