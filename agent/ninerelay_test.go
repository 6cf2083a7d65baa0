//go:build linux

package agent

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"testing"
	"time"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/tcptest"
)

// nineMessage is a 9p message of a size, with a tag.
func nineMessage(size int, tag uint16) []byte {
	m := make([]byte, size)
	binary.LittleEndian.PutUint32(m, uint32(size))
	binary.LittleEndian.PutUint16(m[5:], tag)
	return m
}

// wantMessage reads a message and checks whose it is.
func wantMessage(t *testing.T, conn net.Conn, size int, tag uint16) {
	t.Helper()
	must(t, conn.SetReadDeadline(time.Now().Add(10*time.Second)))
	var buf []byte
	m, err := readMessage(bufio.NewReaderSize(conn, size), &buf)
	if err != nil {
		t.Fatal(err)
	}
	if got := binary.LittleEndian.Uint16(m[5:]); len(m) != size || got != tag {
		t.Fatalf("got %d bytes with tag %d, want %d with %d", len(m), got, size, tag)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func send(t *testing.T, conn net.Conn, message []byte) {
	t.Helper()
	_, err := conn.Write(message)
	must(t, err)
}

// relayed is a relay with a kernel's end that the test has.
func relayed(t *testing.T) (r *nineRelay, kernel net.Conn, host *net.TCPConn) {
	t.Helper()
	host, guest := tcptest.Pair(t)
	r, fd, err := newNineRelay(guest)
	must(t, err)
	f := os.NewFile(uintptr(fd), "kernel")
	kernel, err = net.FileConn(f)
	f.Close()
	must(t, err)
	t.Cleanup(func() { kernel.Close(); r.cut() })
	return r, kernel, host
}

func TestNineRelayChangesServers(t *testing.T) {
	r, kernel, host := relayed(t)
	for _, size := range []int{nineHeader, 100, shareMsize} {
		go kernel.Write(nineMessage(size, 1))
		wantMessage(t, host, size, 1)
		go host.Write(nineMessage(size, 1))
		wantMessage(t, kernel, size, 1)
	}

	// While a request is under way, nothing comes to rest.
	send(t, kernel, nineMessage(20, 2))
	wantMessage(t, host, 20, 2)
	soon, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := r.hold(soon); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("held with a request under way: %v", err)
	}
	held := make(chan error)
	go func() { held <- r.hold(t.Context()) }()
	send(t, host, nineMessage(20, 2))
	wantMessage(t, kernel, 20, 2)
	must(t, <-held)

	// What comes now waits, also for the next server after the end of this one.
	send(t, kernel, nineMessage(30, 3))
	host.SetLinger(0)
	host.Close()
	next, guest := tcptest.Pair(t)
	r.attach(guest)
	must(t, next.SetReadDeadline(time.Now().Add(20*time.Millisecond)))
	if n, err := next.Read(make([]byte, 1)); n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("a held request was sent: %d, %v", n, err)
	}
	r.release()
	wantMessage(t, next, 30, 3)
	send(t, next, nineMessage(40, 3))
	wantMessage(t, kernel, 40, 3)
}

func TestNineRelayEndsWithItsServer(t *testing.T) {
	for name, malformed := range map[string][]byte{
		"the end":     nil,
		"too long":    nineMessage(nineHeader, 1)[:0],
		"cut short":   nineMessage(20, 1)[:10],
		"a lie":       {0xff, 0xff, 0xff, 0xff, 0, 0, 0},
		"less than 7": {1, 0, 0, 0, 0, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			_, kernel, host := relayed(t)
			send(t, host, malformed)
			host.Close()
			must(t, kernel.SetReadDeadline(time.Now().Add(10*time.Second)))
			if n, err := kernel.Read(make([]byte, 1)); n > 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("the kernel is not told: %d, %v", n, err)
			}
		})
	}
}

// A server that goes while the relay is held may be replaced; if it is not, that
// was the end.
func TestNineRelayIsLeft(t *testing.T) {
	r, kernel, host := relayed(t)
	must(t, r.hold(t.Context()))
	host.Close()
	must(t, kernel.SetReadDeadline(time.Now().Add(20*time.Millisecond)))
	if _, err := kernel.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("the kernel was told too early: %v", err)
	}
	r.release()
	must(t, kernel.SetReadDeadline(time.Now().Add(10*time.Second)))
	if _, err := kernel.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the kernel is not told: %v", err)
	}
}
