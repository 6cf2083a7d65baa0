package forward

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/policy"
)

var loopback = netip.MustParseAddr("127.0.0.1")

const tcp, udp = 6, 17

// guest echoes on a port of the loopback, by both protocols.
func guest(t *testing.T) uint16 {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	u, err := net.ListenPacket("udp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close(); u.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer conn.Close(); io.Copy(conn, conn) }()
		}
	}()
	go func() {
		buf := make([]byte, maxDatagram)
		for {
			n, from, err := u.ReadFrom(buf)
			if err != nil {
				return
			}
			u.WriteTo(buf[:n], from)
		}
	}()
	return portOf(l.Addr())
}

func portOf(a net.Addr) uint16 { return netip.MustParseAddrPort(a.String()).Port() }

// published is a port that is free, for a guest's.
func published(t *testing.T, protocol uint8, guest uint16) Port {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return Port{policy.Published{HostIP: loopback, Protocol: protocol, Host: portOf(l.Addr()), Guest: guest}, loopback}
}

// echo says something to a port, and returns the connection.
func echo(t *testing.T, p Port) net.Conn {
	t.Helper()
	conn, err := net.Dial(policy.ProtocolName(p.Protocol)+"4", p.host())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	again(t, conn)
	return conn
}

func again(t *testing.T, conn net.Conn) {
	t.Helper()
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 5)
	if _, err := io.WriteString(conn, "hello"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, buf); err != nil || string(buf) != "hello" {
		t.Fatalf("answer %q, %v", buf, err)
	}
}

// What is wanted is answered, what is wanted no more ends, and what stays does not
// notice.
func TestUpdate(t *testing.T) {
	port := guest(t)
	a, b, c := published(t, tcp, port), published(t, udp, port), published(t, tcp, port)
	var s Set
	defer s.Close()
	if err := s.Update([]Port{a, b, c}); err != nil {
		t.Fatal(err)
	}
	stays, datagrams, goes := echo(t, a), echo(t, b), echo(t, c)
	other := echo(t, b)
	if err := s.Update([]Port{a, b}); err != nil {
		t.Fatal(err)
	}
	again(t, stays)
	again(t, datagrams)
	again(t, other)
	if _, err := goes.Read(make([]byte, 1)); err == nil {
		t.Error("a flow of a port that is wanted no more goes on")
	}
	if conn, err := net.Dial("tcp4", c.host()); err == nil {
		conn.Close()
		t.Error("a port that is wanted no more is answered")
	}
	s.Close()
	if conn, err := net.Dial("tcp4", a.host()); err == nil {
		conn.Close()
		t.Error("a port is answered after the end")
	}
}

// A port that a program of the host's has is named, and taken once it is free.
func TestTakenPort(t *testing.T) {
	port := guest(t)
	a, b := published(t, tcp, port), published(t, tcp, port)
	l, err := net.Listen("tcp4", a.host())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var s Set
	defer s.Close()
	if err := s.Update([]Port{a, b}); err == nil {
		t.Error("a port that is taken: no error")
	}
	echo(t, b)
	l.Close()
	if err := s.Update([]Port{a, b}); err != nil {
		t.Fatal(err)
	}
	echo(t, a)
}

// A guest that does not listen is no listener on the host.
func TestNobodyListens(t *testing.T) {
	p := published(t, tcp, 0)
	p.Guest = published(t, tcp, 0).Host
	var s Set
	defer s.Close()
	if err := s.Update([]Port{p}); err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp4", p.host())
	if err != nil {
		return // The reset was there first.
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("%v, want a reset", err)
	}
}

func TestStrangers(t *testing.T) {
	stranger := &net.TCPAddr{IP: net.IPv4(203, 0, 113, 9), Port: 4000}
	if _, err := dial(context.Background(), "tcp4", stranger, Port{Address: loopback}); !errors.Is(err, errStranger) {
		t.Errorf("%v, want a refusal", err)
	}
}
