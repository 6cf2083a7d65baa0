package policy

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func compile(t *testing.T, p Policy) *Compiled {
	t.Helper()
	c, err := p.Compile([]netip.Addr{netip.MustParseAddr("10.0.0.53")})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestOrder(t *testing.T) {
	addr := netip.MustParseAddr
	internet := Rule{Peers: []string{"0.0.0.0/0"}}
	flow := func(peer, proto string, port uint16) Flow {
		return Flow{Peer: addr(peer), Protocol: protocols[proto], Port: port}
	}
	host := func(proto string, port uint16) Flow {
		return Flow{Peer: addr("203.0.113.1"), Host: true, Protocol: protocols[proto], Port: port}
	}
	for name, tc := range map[string]struct {
		p    Policy
		f    Flow
		pass bool
	}{
		"nothing is allowed":                    {Policy{}, flow("203.0.113.1", "tcp", 80), false},
		"but DNS":                               {Policy{}, flow("10.0.0.53", "udp", 53), true},
		"of the resolver alone":                 {Policy{}, flow("10.0.0.54", "udp", 53), false},
		"at its port alone":                     {Policy{}, flow("10.0.0.53", "udp", 54), false},
		"the internet":                          {Policy{Allow: []Rule{internet}}, flow("203.0.113.1", "tcp", 80), true},
		"is no private network":                 {Policy{Allow: []Rule{internet}}, flow("10.1.1.1", "tcp", 80), false},
		"nor the clouds' metadata":              {Policy{Allow: []Rule{internet}}, flow("169.254.169.254", "tcp", 80), false},
		"nor the host":                          {Policy{Allow: []Rule{internet}}, host("tcp", 80), false},
		"half of everything is none either":     {Policy{Allow: []Rule{{Peers: []string{"0.0.0.0/1"}}}}, flow("10.1.1.1", "tcp", 80), false},
		"a private network by name":             {Policy{Allow: []Rule{{Peers: []string{"10.1.0.0/16"}}}}, flow("10.1.1.1", "tcp", 80), true},
		"a whole range by name":                 {Policy{Allow: []Rule{{Peers: []string{"10.0.0.0/8"}}}}, flow("10.1.1.1", "tcp", 80), true},
		"an address by name":                    {Policy{Allow: []Rule{{Peers: []string{"169.254.169.254"}}}}, flow("169.254.169.254", "tcp", 80), true},
		"the host by name":                      {Policy{Allow: []Rule{{Peers: []string{HostPeer}, Protocol: "tcp", Ports: []string{"80"}}}}, host("tcp", 80), true},
		"the host's other ports":                {Policy{Allow: []Rule{{Peers: []string{HostPeer}, Protocol: "tcp", Ports: []string{"80"}}}}, host("tcp", 81), false},
		"deny wins":                             {Policy{Allow: []Rule{internet}, Deny: []Rule{{Peers: []string{"203.0.113.0/24"}}}}, flow("203.0.113.1", "tcp", 80), false},
		"deny wins over a smaller allow":        {Policy{Allow: []Rule{{Peers: []string{"203.0.113.1"}}}, Deny: []Rule{{Peers: []string{"203.0.0.0/16"}}}}, flow("203.0.113.1", "tcp", 80), false},
		"deny of one port leaves the others":    {Policy{Allow: []Rule{internet}, Deny: []Rule{{Peers: []string{"0.0.0.0/0"}, Protocol: "tcp", Ports: []string{"25"}}}}, flow("203.0.113.1", "tcp", 80), true},
		"deny of one protocol leaves the other": {Policy{Allow: []Rule{internet}, Deny: []Rule{{Peers: []string{"0.0.0.0/0"}, Protocol: "tcp"}}}, flow("203.0.113.1", "udp", 25), true},
		"deny wins over DNS":                    {Policy{Deny: []Rule{{Peers: []string{"10.0.0.0/8"}}}}, flow("10.0.0.53", "udp", 53), false},
		"deny wins over the host by name":       {Policy{Allow: []Rule{{Peers: []string{HostPeer}}}, Deny: []Rule{{Peers: []string{HostPeer}, Protocol: "tcp", Ports: []string{"20-22"}}}}, host("tcp", 22), false},
		"the host by a CIDR is denied":          {Policy{Allow: []Rule{{Peers: []string{"203.0.113.1"}}}}, host("tcp", 80), false},
		"a range of ports":                      {Policy{Allow: []Rule{{Peers: []string{"203.0.113.1"}, Protocol: "udp", Ports: []string{"1000-2000", "3000"}}}}, flow("203.0.113.1", "udp", 2000), true},
		"beside a range of ports":               {Policy{Allow: []Rule{{Peers: []string{"203.0.113.1"}, Protocol: "udp", Ports: []string{"1000-2000", "3000"}}}}, flow("203.0.113.1", "udp", 2001), false},
	} {
		if got := compile(t, tc.p).Opens(tc.f); got != tc.pass {
			t.Errorf("%s: passes %v, want %v", name, got, tc.pass)
		}
	}
}

func TestTakes(t *testing.T) {
	c := compile(t, Policy{
		Publish: []Port{{Host: 8080, Guest: 80}},
		Accept:  []Rule{{Peers: []string{"10.77.0.0/24"}, Protocol: "tcp", Ports: []string{"90"}}},
	})
	peer := netip.MustParseAddr("203.0.113.9")
	for _, tc := range []struct {
		f         Flow
		published bool
		pass      bool
	}{
		{Flow{Peer: peer, Protocol: 6, Port: 80}, true, true},
		{Flow{Peer: peer, Protocol: 6, Port: 80}, false, false},
		{Flow{Peer: peer, Protocol: 17, Port: 80}, true, false},
		{Flow{Peer: peer, Protocol: 6, Port: 8080}, true, false},
		{Flow{Peer: peer, Protocol: 6, Port: 90}, false, false},
		{Flow{Peer: netip.MustParseAddr("10.77.0.9"), Protocol: 6, Port: 90}, false, true},
		{Flow{Peer: peer, Host: true, Protocol: 6, Port: 5}, false, true},
	} {
		if got := c.Takes(tc.f, tc.published); got != tc.pass {
			t.Errorf("%+v, published %v: passes %v", tc.f, tc.published, got)
		}
	}
}

// Policies that mean the same compile to the same.
func TestCompiledIsCanonical(t *testing.T) {
	a := compile(t, Policy{Allow: []Rule{
		{Peers: []string{"203.0.113.128/25", "198.51.100.7"}, Protocol: "tcp", Ports: []string{"443", "80-90", "85-100"}},
		{Peers: []string{"203.0.113.0/25"}, Protocol: "tcp", Ports: []string{"80-100", "443"}},
	}})
	b := compile(t, Policy{Allow: []Rule{{Peers: []string{"198.51.100.7/32", "203.0.113.0/24"}, Protocol: "tcp", Ports: []string{"80-89", "90-100", "443"}}}})
	x, _ := json.Marshal(a)
	y, _ := json.Marshal(b)
	if !slices.Equal(x, y) || len(a.Allow) != 1 {
		t.Errorf("%s\nis not\n%s", x, y)
	}
}

func TestRefused(t *testing.T) {
	for name, p := range map[string]Policy{
		"no peers":         {Allow: []Rule{{Protocol: "tcp"}}},
		"no such protocol": {Allow: []Rule{{Peers: []string{"203.0.113.1"}, Protocol: "sctp"}}},
		"ports of icmp":    {Deny: []Rule{{Peers: []string{"203.0.113.1"}, Protocol: "icmp", Ports: []string{"1"}}}},
		"ports of nothing": {Deny: []Rule{{Peers: []string{"203.0.113.1"}, Ports: []string{"1"}}}},
		"port 0":           {Deny: []Rule{{Peers: []string{"203.0.113.1"}, Protocol: "tcp", Ports: []string{"0"}}}},
		"empty range":      {Deny: []Rule{{Peers: []string{"203.0.113.1"}, Protocol: "tcp", Ports: []string{"9-8"}}}},
		"half a range":     {Deny: []Rule{{Peers: []string{"203.0.113.1"}, Protocol: "tcp", Ports: []string{"9-"}}}},
		"IPv6":             {Allow: []Rule{{Peers: []string{"2001:db8::/32"}}}},
		"an octet of 256":  {Allow: []Rule{{Peers: []string{"203.0.113.256"}}}},
		"a denied name":    {Deny: []Rule{{Peers: []string{"example.org"}}}},
		"accepted host":    {Accept: []Rule{{Peers: []string{HostPeer}}}},
		"published twice":  {Publish: []Port{{Host: 1, Guest: 1}, {Host: 1, Guest: 2, HostIP: netip.MustParseAddr("127.0.0.1")}}},
		"published port 0": {Publish: []Port{{Guest: 1}}},
		"published icmp":   {Publish: []Port{{Host: 1, Guest: 1, Protocol: "icmp"}}},
		"published IPv6":   {Publish: []Port{{Host: 1, Guest: 1, HostIP: netip.IPv6Loopback()}}},
	} {
		if _, err := p.Compile(nil); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v, want invalid argument", name, err)
		}
	}
}

func TestParsePort(t *testing.T) {
	for in, want := range map[string]string{
		"80": "80:80", "8080:80": "8080:80", "127.0.0.1:8080:80/udp": "127.0.0.1:8080:80/udp",
	} {
		p, err := ParsePort(in)
		if err != nil || p.String() != want {
			t.Errorf("%s: %s, %v", in, p, err)
		}
	}
	for _, in := range []string{"", "x", "80:", "1:2:3", "::1:80:80", "70000", "80/sctp", "1.2.3.4:5:6:7"} {
		if p, err := ParsePort(in); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %+v, %v, want invalid argument", in, p, err)
		}
	}
}

func TestNamesAreSortedOut(t *testing.T) {
	c := compile(t, Policy{Allow: []Rule{{Peers: []string{"Example.ORG.", "*.example.org", "203.0.113.1"}, Protocol: "tcp", Ports: []string{"443"}}}})
	if len(c.Names) != 1 || strings.Join(c.Names[0].Domains, " ") != "*.example.org example.org" || len(c.Allow) != 1 {
		t.Errorf("compiled to %+v", c)
	}
}
