package resolver

import (
	"context"
	"io"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/miekg/dns"
)

const patience = 60 * time.Second

// fakeGuests refuse everything, and keep those who ask from hostile waiting.
type fakeGuests struct {
	hostile netip.Addr
	entered chan struct{}
	release chan struct{}
}

func (g fakeGuests) Asks(guest netip.Addr, _ string) (may, named bool, err error) {
	if guest == g.hostile {
		g.entered <- struct{}{}
		<-g.release
	}
	return false, false, nil
}

func (g fakeGuests) Resolved(context.Context, netip.Addr, string, []netip.Addr, time.Duration) error {
	return nil
}

// fakeWriter is where the answer to one request goes.
type fakeWriter struct {
	dns.ResponseWriter
	from  netip.Addr
	reply *dns.Msg
}

func (w *fakeWriter) LocalAddr() net.Addr { return &net.UDPAddr{} }
func (w *fakeWriter) RemoteAddr() net.Addr {
	return net.UDPAddrFromAddrPort(netip.AddrPortFrom(w.from, 4711))
}
func (w *fakeWriter) WriteMsg(reply *dns.Msg) error { w.reply = reply; return nil }

// A guest that has many requests under way does not keep others from theirs.
func TestSharesOfRequests(t *testing.T) {
	hostile, other := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	guests := fakeGuests{hostile, make(chan struct{}, atOnce), make(chan struct{})}
	s, err := New(guests, []netip.AddrPort{netip.MustParseAddrPort("192.0.2.53:53")})
	if err != nil {
		t.Fatal(err)
	}
	ask := func(from netip.Addr) int {
		w := &fakeWriter{from: from}
		s.ServeDNS(w, new(dns.Msg).SetQuestion("example.org.", dns.TypeA))
		return w.reply.Rcode
	}
	answers := make(chan int, atOnce)
	for range atOnce {
		go func() { answers <- ask(hostile) }()
	}
	for range perGuest {
		<-guests.entered
	}
	for range atOnce - perGuest {
		if code := <-answers; code != dns.RcodeServerFailure {
			t.Fatalf("one request too many: %s", dns.RcodeToString[code])
		}
	}
	if code := ask(other); code != dns.RcodeRefused {
		t.Errorf("another guest's request: %s, want an answer", dns.RcodeToString[code])
	}
	close(guests.release)
	for range perGuest {
		if code := <-answers; code != dns.RcodeRefused {
			t.Errorf("a request that waited: %s", dns.RcodeToString[code])
		}
	}
	if code := ask(hostile); code != dns.RcodeRefused {
		t.Errorf("a request after the others: %s", dns.RcodeToString[code])
	}
	if n := len(s.requests.of); n != 0 {
		t.Errorf("%d guests are remembered", n)
	}
}

func TestSharesOfConnections(t *testing.T) {
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	l := fair{tcp, &shares{}}
	accepted := make(chan net.Conn, 2*perGuest)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- conn
		}
	}()
	dial := func() net.Conn {
		conn, err := net.Dial("tcp", tcp.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	var first net.Conn
	for i := range perGuest {
		dial()
		conn := <-accepted
		defer conn.Close()
		if i == 0 {
			first = conn
		}
	}
	over := dial()
	if err := over.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := over.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("one connection too many: %v, want its end", err)
	}
	// Closed twice it was one.
	first.Close()
	first.Close()
	dial()
	conn := <-accepted
	defer conn.Close()
	over = dial()
	if err := over.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := over.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("one too many again: %v, want its end", err)
	}
}

// What an answer opens is of the internet, and open for a while: the shortest of its
// times, or a day.
func TestAddressesOfAnAnswer(t *testing.T) {
	for _, tc := range []struct {
		name    string
		records []string
		addrs   []netip.Addr
		ttl     time.Duration
	}{
		{"a chain", []string{"a. 300 IN CNAME b.", "b. 60 IN A 198.18.0.1", "b. 90 IN A 192.0.2.1"}, []netip.Addr{netip.MustParseAddr("192.0.2.1")}, time.Minute},
		{"addresses", []string{"a. 300 IN A 9.9.9.9", "a. 200 IN A 8.8.8.8"}, []netip.Addr{netip.MustParseAddr("9.9.9.9"), netip.MustParseAddr("8.8.8.8")}, 200 * time.Second},
		{"for ever", []string{"a. 4294967295 IN A 9.9.9.9"}, []netip.Addr{netip.MustParseAddr("9.9.9.9")}, maxTTL},
		{"the host itself", []string{"a. 60 IN A 127.0.0.1"}, nil, time.Minute},
	} {
		m := new(dns.Msg)
		for _, text := range tc.records {
			rr, err := dns.NewRR(text)
			if err != nil {
				t.Fatal(err)
			}
			m.Answer = append(m.Answer, rr)
		}
		addrs, ttl := addresses(m)
		if !slices.Equal(addrs, tc.addrs) || ttl != tc.ttl {
			t.Errorf("%s: %v for %v, want %v for %v", tc.name, addrs, ttl, tc.addrs, tc.ttl)
		}
		for _, rr := range m.Answer {
			if ttl := time.Duration(rr.Header().Ttl) * time.Second; ttl > maxTTL {
				t.Errorf("%s: the guest may keep it for %v", tc.name, ttl)
			}
		}
	}
}
