//go:build linux

package integration

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// linkPort is what the test listens on, where the guest must not get at it.
const linkPort = 4711

// testLink lets the guest try to reach the host over the link, with everything
// that a tenant can be given, while someone listens on the host's end.
func testLink(r *rig) {
	id := r.startInMachine()
	reached := r.listenOnLink(id)
	result := r.exec(id, nil, nil, nil, "/bin/probe", "link", strconv.Itoa(linkPort))
	if result.Code != 0 {
		r.Errorf("the guest reached the host:\n%s", failures(result.Stdout+result.Stderr))
	}
	for len(reached) > 0 {
		r.Error(<-reached)
	}
}

// listenOnLink listens with TCP and UDP in the namespace of the link's host
// end, which the shim holds open. What arrives there is told on the channel.
func (r *rig) listenOnLink(id string) <-chan string {
	r.Helper()
	ns := r.linkNamespace(r.findProcess("containerd-shim-bhyve", id).Pid)
	defer ns.Close()
	type sockets struct {
		tcp net.Listener
		udp net.PacketConn
		err error
	}
	opened := make(chan sockets)
	go func() {
		// The thread ends with the goroutine: it is in the wrong namespace for
		// any other.
		runtime.LockOSThread()
		var s sockets
		if s.err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); s.err == nil {
			s.tcp, s.err = net.Listen("tcp6", fmt.Sprintf("[::]:%d", linkPort))
		}
		if s.err == nil {
			s.udp, s.err = net.ListenPacket("udp6", fmt.Sprintf("[::]:%d", linkPort))
		}
		opened <- s
	}()
	s := <-opened
	if s.err != nil {
		r.Fatalf("listen on the link: %v", s.err)
	}
	r.Cleanup(func() { s.tcp.Close(); s.udp.Close() })

	reached := make(chan string, 2)
	go func() {
		if c, err := s.tcp.Accept(); err == nil {
			reached <- "TCP connection from " + c.RemoteAddr().String()
			c.Close()
		}
	}()
	go func() {
		if _, from, err := s.udp.ReadFrom(make([]byte, 64)); err == nil {
			reached <- "UDP datagram from " + from.String()
		}
	}()
	return reached
}

// linkNamespace is the network namespace, other than the one it is in, that a
// process has open.
func (r *rig) linkNamespace(pid int) *os.File {
	r.Helper()
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	own, err := os.Readlink(filepath.Join(dir, "ns/net"))
	if err != nil {
		r.Fatal(err)
	}
	fds, err := os.ReadDir(filepath.Join(dir, "fd"))
	if err != nil {
		r.Fatal(err)
	}
	for _, fd := range fds {
		path := filepath.Join(dir, "fd", fd.Name())
		if target, err := os.Readlink(path); err == nil && strings.HasPrefix(target, "net:[") && target != own {
			f, err := os.Open(path)
			if err != nil {
				r.Fatal(err)
			}
			return f
		}
	}
	r.Fatalf("process %d has no other network namespace open: the link is no tap", pid)
	return nil
}
