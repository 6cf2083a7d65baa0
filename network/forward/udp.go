package forward

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"
)

// udp listens, and returns what answers. Each client has a socket of its own to the
// guest, so that the guest tells them apart and answers find their way.
func (l *listener) udp(ctx context.Context, p Port) (func(), error) {
	addr, err := net.ResolveUDPAddr("udp4", p.host())
	if err != nil {
		return nil, err
	}
	socket, err := net.ListenUDP("udp4", addr)
	if err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, func() { socket.Close() })
	r := &relay{l: l, port: p, socket: socket, flows: map[netip.AddrPort]net.Conn{}}
	return func() { r.serve(ctx) }, nil
}

// relay is a published UDP port.
type relay struct {
	l      *listener
	port   Port
	socket *net.UDPConn

	mu sync.Mutex
	// flows are sockets to the guest by client.
	flows map[netip.AddrPort]net.Conn
}

func (r *relay) serve(ctx context.Context) {
	buf := make([]byte, maxDatagram)
	for {
		n, client, err := r.socket.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			// Such as an earlier answer that nobody took.
			pause(ctx)
			continue
		}
		flow, err := r.flow(ctx, client)
		if err != nil {
			continue
		}
		_ = flow.SetReadDeadline(time.Now().Add(udpIdle))
		// Datagrams may be lost.
		_, _ = flow.Write(buf[:n])
	}
}

// flow is the client's socket to the guest.
func (r *relay) flow(ctx context.Context, client netip.AddrPort) (net.Conn, error) {
	r.mu.Lock()
	flow, full := r.flows[client], len(r.flows) >= atOnce
	r.mu.Unlock()
	switch {
	case flow != nil:
		return flow, nil
	case full:
		return nil, errors.New("too many flows")
	}
	// This connects nothing, and so takes no time.
	flow, err := dial(ctx, "udp4", net.UDPAddrFromAddrPort(client), r.port)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	r.flows[client] = flow
	r.mu.Unlock()
	r.l.done.Go(func() { r.answers(ctx, client, flow) })
	return flow, nil
}

// answers passes on what the guest says to a client, until both have been silent
// for a while.
func (r *relay) answers(ctx context.Context, client netip.AddrPort, flow net.Conn) {
	defer context.AfterFunc(ctx, func() { flow.Close() })()
	defer func() {
		r.mu.Lock()
		delete(r.flows, client)
		r.mu.Unlock()
		flow.Close()
	}()
	buf := make([]byte, maxDatagram)
	for {
		n, err := flow.Read(buf)
		if err != nil {
			return
		}
		_ = flow.SetReadDeadline(time.Now().Add(udpIdle))
		_, _ = r.socket.WriteToUDPAddrPort(buf[:n], client)
	}
}
