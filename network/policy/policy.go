// Package policy says what a sandbox may send and receive. It is the one place
// where that is decided: renderers (nft, pf) put a Compiled into the words of a
// packet filter, and Compiled itself answers for a single flow, which is how
// their rules are tested and how states that a change has outlawed are found.
//
// Everything is denied that nothing allows. For a flow that a guest opens, in
// this order:
//
//  1. a Deny rule that matches ends it;
//  2. port 53 of the configured resolvers is allowed;
//  3. an Allow rule that matches allows it;
//  4. it is denied.
//
// A CIDR in an Allow rule does not open what is not the internet (see Special)
// unless it lies within one of these ranges itself: 0.0.0.0/0 allows the
// internet, 10.1.0.0/16 allows that part of a private network. Addresses of the
// host are never reached by CIDR, only by the peer "host".
//
// For a flow to the guest: published ports, and what an Accept rule names.
// Answers to flows of either kind pass.
package policy

import (
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
)

// Policy is a sandbox's policy as people write it. The zero value denies
// everything but DNS.
type Policy struct {
	// Deny wins over everything else.
	Deny []Rule `json:"deny,omitempty" toml:"deny"`
	// Allow is what the guest may open.
	Allow []Rule `json:"allow,omitempty" toml:"allow"`
	// Accept is who may open what to the guest. Peers are sources, ports the
	// guest's.
	Accept []Rule `json:"accept,omitempty" toml:"accept"`
	// Publish are ports of the host that lead to the guest.
	Publish []Port `json:"publish,omitempty" toml:"publish"`
	// Bandwidth is the most that passes between the guest and the rest of the
	// world in each direction, in bytes a second; 0 for no limit. The host's own
	// connections to the guest do not count on Linux.
	Bandwidth uint64 `json:"bandwidth,omitempty" toml:"bandwidth"`
	// MaxFlows bounds how many flows the guest may have open at a time; 0 for
	// DefaultMaxFlows. The host's table of flows is one for all.
	MaxFlows uint32 `json:"max_flows,omitempty" toml:"max_flows"`
}

// DefaultMaxFlows is MaxFlows where nothing is said.
const DefaultMaxFlows = 4096

// HostPeer is the peer that names the host itself, with all its addresses.
const HostPeer = "host"

// Rule matches flows by peer, protocol and port.
type Rule struct {
	// Peers are IPv4 addresses, CIDRs, HostPeer, and in Allow rules domain names.
	Peers []string `json:"peers" toml:"peers"`
	// Protocol is "tcp", "udp", "icmp", or empty for every protocol.
	Protocol string `json:"protocol,omitempty" toml:"protocol"`
	// Ports are destination ports and ranges ("8000-8080") of TCP or UDP; none
	// means all.
	Ports []string `json:"ports,omitempty" toml:"ports"`
}

// Port is a port of the host's that leads to a port of the guest's.
type Port struct {
	// HostIP restricts it to one address of the host's; unset for all of them,
	// 127.0.0.1 for the host alone.
	HostIP netip.Addr `json:"host_ip,omitzero" toml:"host_ip"`
	Host   uint16     `json:"host" toml:"host"`
	Guest  uint16     `json:"guest" toml:"guest"`
	// Protocol is "tcp" or "udp"; empty means tcp.
	Protocol string `json:"protocol,omitempty" toml:"protocol"`
}

// ParsePort reads [[HOSTIP:]HOST:]GUEST[/PROTOCOL], as clients write it.
func ParsePort(s string) (Port, error) {
	bad := func(why string) (Port, error) {
		return Port{}, fmt.Errorf("published port %q: %s: %w", s, why, errdefs.ErrInvalidArgument)
	}
	ports, proto, _ := strings.Cut(s, "/")
	p := Port{Protocol: proto}
	parts := strings.Split(ports, ":")
	if len(parts) > 3 {
		return bad("want [[host ip:]host port:]port[/protocol]")
	}
	if len(parts) == 3 {
		addr, err := netip.ParseAddr(parts[0])
		if err != nil {
			return bad(err.Error())
		}
		p.HostIP, parts = addr, parts[1:]
	}
	guest, err := parsePort(parts[len(parts)-1])
	if err != nil {
		return bad(err.Error())
	}
	p.Guest, p.Host = guest, guest
	if len(parts) == 2 {
		if p.Host, err = parsePort(parts[0]); err != nil {
			return bad(err.Error())
		}
	}
	if _, err := p.compile(); err != nil {
		return Port{}, err
	}
	return p, nil
}

// String is what ParsePort reads.
func (p Port) String() string {
	s := fmt.Sprintf("%d:%d", p.Host, p.Guest)
	if p.HostIP.IsValid() {
		s = p.HostIP.String() + ":" + s
	}
	if p.Protocol != "" {
		s += "/" + p.Protocol
	}
	return s
}

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%q is no port, want 1 to 65535: %w", s, errdefs.ErrInvalidArgument)
	}
	return uint16(n), nil
}

// protocols are IP protocol numbers (IANA) by the name that rules use.
var protocols = map[string]uint8{"": 0, "icmp": 1, "tcp": 6, "udp": 17}

// ProtocolName is the name of an IP protocol that rules can name, and empty
// for 0.
func ProtocolName(n uint8) string {
	for name, number := range protocols {
		if n == number {
			return name
		}
	}
	return strconv.Itoa(int(n))
}

// Special are the IPv4 ranges that are not the internet: this network, private
// and shared networks, loopback, link-local with the clouds' metadata service,
// benchmarking, multicast, reserved and broadcast (RFC 6890, RFC 5771).
var Special = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("10.0.0.0/8"),
	netip.MustParsePrefix("100.64.0.0/10"),
	netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("172.16.0.0/12"),
	netip.MustParsePrefix("192.0.0.0/24"),
	netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("198.18.0.0/15"),
	netip.MustParsePrefix("224.0.0.0/4"),
	netip.MustParsePrefix("240.0.0.0/4"),
}

// domainName is a host name of at least two labels (RFC 1123), with "*." before
// it for every name below. An address is none.
var domainName = regexp.MustCompile(`^(\*\.)?([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9])?\.)+[a-z]([a-z0-9-]{0,61}[a-z0-9])?$`)

// IsSpecial says whether addr is in one of the Special ranges.
func IsSpecial(addr netip.Addr) bool {
	for _, p := range Special {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}
