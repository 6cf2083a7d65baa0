package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/miekg/dns"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/policy"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/resolver"
)

// nameTTL is long enough to be used on a busy machine, and short enough to wait
// for its end.
const nameTTL = 4

// nameServer answers in the world, for a few names.
func (r *rig) nameServer(port uint16) {
	r.t.Helper()
	names := map[string]string{"web.example.org.": friend, "other.example.org.": foe, "rebound.example.org.": private}
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		if addr, ok := names[q.Question[0].Name]; ok && q.Question[0].Qtype == dns.TypeA {
			rr, err := dns.NewRR(fmt.Sprintf("%s %d IN A %s", q.Question[0].Name, nameTTL, addr))
			if err == nil {
				m.Answer = append(m.Answer, rr)
			}
		}
		_ = w.WriteMsg(m)
	})
	conn, err := r.world.listenPacket(port)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { conn.Close() })
	server := &dns.Server{PacketConn: conn, Handler: handler}
	go server.ActivateAndServe()
}

// lookUp asks the gateway from a guest.
func (r *rig) lookUp(g *guest, name string) *dns.Msg {
	r.t.Helper()
	conn, err := g.dial(r.t.Context(), "udp4", g.Gateway.String()+":53")
	if err != nil {
		r.t.Fatal(err)
	}
	defer conn.Close()
	client := dns.Client{Timeout: patience}
	reply, _, err := client.ExchangeWithConn(new(dns.Msg).SetQuestion(name, dns.TypeA), &dns.Conn{Conn: conn})
	if err != nil {
		r.t.Fatal(err)
	}
	return reply
}

// A name that a policy allows is open from its resolution on until its time to
// live is over; a flow that was opened meanwhile goes on.
func TestNames(t *testing.T) {
	r := newRig(t, policy.Policy{})
	r.net.cfg.DNS = []netip.Addr{r.net.cfg.Gateway}
	r.serve(r.world, 80)
	r.nameServer(5353)
	ctx, cancel := context.WithCancel(t.Context())
	server, err := resolver.New(inHost{r}, []netip.AddrPort{netip.MustParseAddrPort(friend + ":5353")})
	if err != nil {
		t.Fatal(err)
	}
	server.Dial = r.host.dial
	served := make(chan error, 1)
	var udp net.PacketConn
	var tcp net.Listener
	names := policy.Policy{Allow: []policy.Rule{rule("tcp", []string{"80"}, "web.example.org", "rebound.example.org")}}
	g := r.guest("a", &names)
	r.in(func() (err error) {
		addr := netip.AddrPortFrom(g.Gateway, 53).String()
		if udp, err = net.ListenPacket("udp4", addr); err != nil {
			return err
		}
		tcp, err = net.Listen("tcp4", addr)
		return err
	})
	go func() { served <- server.Serve(ctx, udp, tcp) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})

	r.denied("a", g.place, "tcp", friend+":80")
	if m := r.lookUp(g, "other.example.org."); m.Rcode != dns.RcodeRefused {
		t.Errorf("a name that is not allowed: %v", m)
	}
	if m := r.lookUp(g, "rebound.example.org."); len(m.Answer) != 0 {
		t.Errorf("a name of a private address: %v", m)
	}
	r.denied("a", g.place, "tcp", private+":80")
	m := r.lookUp(g, "Web.Example.org.")
	if m.Rcode != dns.RcodeSuccess {
		t.Fatalf("the name that is allowed: %v", m)
	}
	if m = r.lookUp(g, "web.example.org."); len(m.Answer) != 1 {
		t.Fatalf("the name that is allowed: %v", m)
	}
	opened, stop := context.WithTimeout(t.Context(), patience)
	defer stop()
	conn, err := r.open(opened, g.place, "tcp", friend+":80")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	// Another part of the policy changes: the address stays.
	names.Deny = []policy.Rule{rule("", nil, foe)}
	r.in(func() error { return r.net.SetPolicy(t.Context(), "a", names) })
	if err := echo(opened, conn); err != nil {
		t.Errorf("the open flow after a change of policy: %v", err)
	}
	r.denied("a", g.place, "tcp", foe+":80")
	// With the name goes the address.
	r.in(func() error { return r.net.SetPolicy(t.Context(), "a", policy.Policy{}) })
	r.denied("a", g.place, "tcp", friend+":80")

	b := r.guest("b", &policy.Policy{Allow: []policy.Rule{rule("tcp", []string{"80"}, "*.example.org")}})
	if m := r.lookUp(b, "other.example.org."); len(m.Answer) != 1 {
		t.Fatalf("below a name that is allowed: %v", m)
	}
	r.passes(b.place, "tcp", foe+":80")
	r.denied("b", b.place, "tcp", foe+":81")
}

// An address that nobody talks to is closed when its record is over.
func TestNamesEnd(t *testing.T) {
	r := newRig(t, policy.Policy{Allow: []policy.Rule{rule("tcp", []string{"81"}, "web.example.org")}})
	g := r.guest("a", nil)
	ctx, cancel := context.WithCancel(t.Context())
	expired := make(chan error, 1)
	go func() { expired <- r.try(func() error { return r.net.Expire(ctx) }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-expired; err != nil && !errdefs.IsNotImplemented(err) {
			t.Error(err)
		}
	})
	r.in(func() error {
		return r.net.Resolved(t.Context(), g.Address, "web.example.org", []netip.Addr{netip.MustParseAddr(friend)}, nameTTL*time.Second)
	})
	// Nobody listens there: the world says so, for as long as the guest may ask.
	ask := func(ctx context.Context) error {
		_, err := r.open(ctx, g.place, "tcp", friend+":81")
		return err
	}
	if err := ask(t.Context()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("an address whose time has come: %v, want connection refused", err)
	}
	r.stopped("a", "an address whose time is over", denied, func(ctx context.Context) error {
		for ctx.Err() == nil {
			if err := ask(ctx); err == nil {
				return nil
			}
		}
		return ctx.Err()
	})
}

// inHost calls a network on its host.
type inHost struct{ r *rig }

func (h inHost) Asks(guest netip.Addr, domain string) (may, named bool, err error) {
	return h.r.net.Asks(guest, domain)
}

func (h inHost) Resolved(ctx context.Context, guest netip.Addr, domain string, addrs []netip.Addr, ttl time.Duration) error {
	return h.r.try(func() error { return h.r.net.Resolved(ctx, guest, domain, addrs, ttl) })
}
