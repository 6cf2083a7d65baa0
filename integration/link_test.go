//go:build linux || freebsd

package integration

import (
	"fmt"
	"net"
	"strconv"
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

// sockets listen where the guest must not get at them.
type sockets struct {
	tcp net.Listener
	udp net.PacketConn
	err error
}

func listen() (s sockets) {
	if s.tcp, s.err = net.Listen("tcp6", fmt.Sprintf("[::]:%d", linkPort)); s.err == nil {
		s.udp, s.err = net.ListenPacket("udp6", fmt.Sprintf("[::]:%d", linkPort))
	}
	return s
}

// listenOnLink listens with TCP and UDP at the link's host end. What arrives
// there is told on the channel.
func (r *rig) listenOnLink(id string) <-chan string {
	r.Helper()
	s := r.listenAtHostEnd(id)
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
