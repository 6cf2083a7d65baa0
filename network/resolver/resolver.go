// Package resolver forwards the DNS requests of guests, and opens to a guest the
// addresses that a name has which its policy allows, for as long as the answer
// may be kept.
//
// It listens on the gateway's address and knows guests by theirs, which they
// cannot forge. The answer is sent when the packet filter has its addresses.
package resolver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/miekg/dns"
	"golang.org/x/time/rate"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/policy"
)

// Guests are the sandboxes whose requests are answered: a *network.Network.
type Guests interface {
	Asks(guest netip.Addr, domain string) (may, named bool, err error)
	Resolved(ctx context.Context, guest netip.Addr, domain string, addrs []netip.Addr, ttl time.Duration) error
}

const (
	// requestTimeout bounds one request, and each upstream server gets an equal
	// part of it. Resolvers of C libraries ask again after five seconds.
	requestTimeout = 4 * time.Second
	// atOnce is how many requests are under way at a time, and perGuest how many
	// of them are one guest's; others are refused.
	atOnce   = 256
	perGuest = 32
	// complaintsAtOnce is how many lines of a kind the log has, before it has one a
	// minute.
	complaintsAtOnce = 10
	// minTTL is how long an address is open at least: a guest has to come to use it.
	minTTL = 2 * time.Second
	// maxTTL is how long at most: whoever answers for a name could have its address
	// open for ever. Caches keep answers for days (RFC 8767, section 4).
	maxTTL = 24 * time.Hour
)

// Server answers requests.
type Server struct {
	// Dial connects to an upstream server; net.Dialer's but in tests.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)

	guests   Guests
	upstream []netip.AddrPort
	slots    chan struct{}
	// requests and connections are those of each guest.
	requests, connections shares
	// unanswered and unopened keep what a guest can bring about from filling the
	// log.
	unanswered, unopened rate.Sometimes
}

// shares are how much each guest has of something that all share.
type shares struct {
	mu sync.Mutex
	of map[netip.Addr]int
}

// take counts one more, unless the guest has its share already.
func (s *shares) take(guest netip.Addr) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.of[guest] >= perGuest {
		return false
	}
	if s.of == nil {
		s.of = map[netip.Addr]int{}
	}
	s.of[guest]++
	return true
}

func (s *shares) give(guest netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.of[guest]--; s.of[guest] == 0 {
		delete(s.of, guest)
	}
}

// New returns a server that asks upstream, one server after the other.
func New(guests Guests, upstream []netip.AddrPort) (*Server, error) {
	if len(upstream) == 0 {
		return nil, fmt.Errorf("resolver: nobody to ask: %w", errdefs.ErrInvalidArgument)
	}
	return &Server{
		Dial: new(net.Dialer).DialContext, guests: guests, upstream: upstream,
		slots:      make(chan struct{}, atOnce),
		unanswered: rate.Sometimes{First: complaintsAtOnce, Interval: time.Minute},
		unopened:   rate.Sometimes{First: complaintsAtOnce, Interval: time.Minute},
	}, nil
}

// Serve answers on both sockets until ctx ends, and closes them.
func (s *Server) Serve(ctx context.Context, udp net.PacketConn, tcp net.Listener) error {
	servers := []*dns.Server{{PacketConn: udp, Handler: s}, {Listener: fair{tcp, &s.connections}, Handler: s}}
	failed := make(chan error, len(servers))
	for _, server := range servers {
		go func() { failed <- server.ActivateAndServe() }()
	}
	var err error
	left := len(servers)
	select {
	case <-ctx.Done():
	case err = <-failed:
		left--
	}
	udp.Close()
	tcp.Close()
	for range left {
		if e := <-failed; e != nil && !errors.Is(e, net.ErrClosed) {
			err = errors.Join(err, e)
		}
	}
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("resolver: %w", err)
}

// ServeDNS implements dns.Handler.
func (s *Server) ServeDNS(w dns.ResponseWriter, r *dns.Msg) {
	reply := s.admit(guestAt(w.RemoteAddr()), r)
	if w.LocalAddr().Network() == "udp" {
		size := uint16(dns.MinMsgSize)
		if o := r.IsEdns0(); o != nil {
			size = max(size, o.UDPSize())
		}
		reply.Truncate(int(size))
	}
	// A guest that is gone needs no answer.
	_ = w.WriteMsg(reply)
}

// fair is a listener that ends connections which a guest has too many of.
type fair struct {
	net.Listener
	connections *shares
}

func (l fair) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		guest := guestAt(conn.RemoteAddr())
		if l.connections.take(guest) {
			return &counted{Conn: conn, close: sync.OnceValue(func() error {
				defer l.connections.give(guest)
				return conn.Close()
			})}, nil
		}
		conn.Close()
	}
}

type counted struct {
	net.Conn
	close func() error
}

func (c *counted) Close() error { return c.close() }

// guestAt is the zero Addr for what is no address of IP's.
func guestAt(addr net.Addr) netip.Addr {
	peer, _ := netip.ParseAddrPort(addr.String())
	return peer.Addr().Unmap()
}

// admit answers a request, unless there are too many.
func (s *Server) admit(guest netip.Addr, r *dns.Msg) *dns.Msg {
	busy := new(dns.Msg).SetRcode(r, dns.RcodeServerFailure)
	if !s.requests.take(guest) {
		return busy
	}
	defer s.requests.give(guest)
	select {
	case s.slots <- struct{}{}:
	default:
		return busy
	}
	defer func() { <-s.slots }()
	ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
	defer cancel()
	return s.answer(ctx, guest, r)
}

func (s *Server) answer(ctx context.Context, guest netip.Addr, r *dns.Msg) *dns.Msg {
	failed := func(code int) *dns.Msg { return new(dns.Msg).SetRcode(r, code) }
	if !guest.IsValid() || len(r.Question) != 1 || r.Opcode != dns.OpcodeQuery {
		return failed(dns.RcodeFormatError)
	}
	q := r.Question[0]
	may, named, err := s.guests.Asks(guest, q.Name)
	if err != nil || !may {
		return failed(dns.RcodeRefused)
	}
	reply, err := s.exchange(ctx, r)
	if err != nil {
		s.unanswered.Do(func() {
			log.G(ctx).WithError(err).WithField("guest", guest).Warn("a guest's request was not answered, perhaps one of many")
		})
		return failed(dns.RcodeServerFailure)
	}
	if q.Qtype == dns.TypeAAAA {
		// Guests have IPv4 only: an address that they could not use costs them time.
		reply.Answer = nil
	}
	if !named {
		return reply
	}
	addrs, ttl := addresses(reply)
	if len(addrs) == 0 {
		return reply
	}
	if err := s.guests.Resolved(ctx, guest, q.Name, addrs, max(ttl, minTTL)); err != nil {
		s.unopened.Do(func() {
			log.G(ctx).WithError(err).WithField("guest", guest).Error("addresses of an allowed name were not opened, perhaps one of many")
		})
		return failed(dns.RcodeServerFailure)
	}
	return reply
}

// exchange asks one upstream server after the other, by TCP where the answer is
// too long for a datagram.
func (s *Server) exchange(ctx context.Context, r *dns.Msg) (*dns.Msg, error) {
	var errs []error
	for _, server := range s.upstream {
		for _, network := range []string{"udp", "tcp"} {
			reply, err := s.ask(ctx, network, server, r)
			if err != nil {
				errs = append(errs, err)
				break
			}
			if !reply.Truncated {
				return reply, nil
			}
		}
	}
	return nil, errors.Join(errs...)
}

func (s *Server) ask(ctx context.Context, network string, server netip.AddrPort, r *dns.Msg) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout/time.Duration(len(s.upstream)))
	defer cancel()
	conn, err := s.Dial(ctx, network, server.String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	client := dns.Client{Net: network}
	reply, _, err := client.ExchangeWithConnContext(ctx, r, &dns.Conn{Conn: conn, UDPSize: dns.MaxMsgSize})
	return reply, err
}

// addresses are the IPv4 addresses of an answer that a policy may open, and how
// long all of it may be kept, which the answer then says too. The others are taken
// out of it.
func addresses(m *dns.Msg) (addrs []netip.Addr, ttl time.Duration) {
	seconds := ^uint32(0)
	kept := m.Answer[:0]
	for _, rr := range m.Answer {
		rr.Header().Ttl = min(rr.Header().Ttl, uint32(maxTTL/time.Second))
		seconds = min(seconds, rr.Header().Ttl)
		if a, ok := rr.(*dns.A); ok {
			addr, ok := netip.AddrFromSlice(a.A.To4())
			if !ok || policy.IsSpecial(addr) {
				continue
			}
			addrs = append(addrs, addr)
		}
		kept = append(kept, rr)
	}
	m.Answer = kept
	return addrs, time.Duration(seconds) * time.Second
}
