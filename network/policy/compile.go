package policy

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"go4.org/netipx"
)

// Compiled is a policy with all of its rules decided, in the form that packet
// filters want: disjoint, sorted ranges, one Match a service. Two policies that
// mean the same compile to the same.
type Compiled struct {
	// Deny ends a flow of the guest's, Resolvers and Allow let it pass. Peers of
	// Allow have no special address in them that no rule names.
	Deny, Resolvers, Allow []Match
	// DenyHost and Host are the same for flows to the host itself; their Peers
	// are empty.
	DenyHost, Host []Match
	// Accept lets a flow to the guest pass. Peers are its sources.
	Accept []Match
	// Names are the domain names that are allowed.
	Names []NamedMatch
	// Publish is sorted by protocol and port.
	Publish []Published
	// Bandwidth is in bytes a second, 0 for no limit.
	Bandwidth uint64
	MaxFlows  uint32
}

// Service is a protocol with its ports.
type Service struct {
	// Protocol is an IP protocol number, 0 for all of them.
	Protocol uint8
	// Ports are disjoint and sorted; none means all.
	Ports []PortRange
}

// PortRange is First to Last, both included.
type PortRange struct{ First, Last uint16 }

func (r PortRange) String() string {
	if r.First == r.Last {
		return fmt.Sprint(r.First)
	}
	return fmt.Sprintf("%d-%d", r.First, r.Last)
}

// Match is a service at certain peers.
type Match struct {
	Service
	Peers []netipx.IPRange
}

// NamedMatch is a service at whatever addresses domain names have.
type NamedMatch struct {
	Service
	// Domains are in lower case, without a final dot.
	Domains []string
}

// Published is a port of the host's that leads to one of the guest's.
type Published struct {
	// HostIP is invalid for all addresses of the host.
	HostIP   netip.Addr
	Protocol uint8
	Host     uint16
	Guest    uint16
}

// Compile decides a policy. resolvers are the DNS servers that the guest is
// given. Errors are errdefs.ErrInvalidArgument and name the rule.
func (p Policy) Compile(resolvers []netip.Addr) (*Compiled, error) {
	c := &Compiled{Bandwidth: p.Bandwidth, MaxFlows: cmp.Or(p.MaxFlows, DefaultMaxFlows)}
	var deny, allow, accept, resolver grouped
	var err error
	if c.DenyHost, err = deny.add("deny", p.Deny, nil); err != nil {
		return nil, err
	}
	if c.Host, err = allow.add("allow", p.Allow, &c.Names); err != nil {
		return nil, err
	}
	host, err := accept.add("accept", p.Accept, nil)
	if err != nil {
		return nil, err
	}
	if len(host) > 0 {
		return nil, fmt.Errorf("policy: accept: the host may open everything to a guest, so that peer means nothing: %w", errdefs.ErrInvalidArgument)
	}
	for _, addr := range resolvers {
		for _, proto := range []string{"tcp", "udp"} {
			s := Service{protocols[proto], []PortRange{{53, 53}}}
			resolver.group(s).AddPrefix(netip.PrefixFrom(addr, addr.BitLen()))
		}
	}
	for _, g := range []struct {
		from *grouped
		to   *[]Match
	}{{&deny, &c.Deny}, {&allow, &c.Allow}, {&accept, &c.Accept}, {&resolver, &c.Resolvers}} {
		if *g.to, err = g.from.matches(); err != nil {
			return nil, err
		}
	}
	taken := map[[2]uint16]bool{}
	for _, port := range p.Publish {
		published, err := port.compile()
		if err != nil {
			return nil, err
		}
		key := [2]uint16{uint16(published.Protocol), published.Host}
		if taken[key] {
			return nil, fmt.Errorf("policy: port %s is published twice: %w", port, errdefs.ErrInvalidArgument)
		}
		taken[key] = true
		c.Publish = append(c.Publish, published)
	}
	slices.SortFunc(c.Publish, func(a, b Published) int {
		return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Host, b.Host))
	})
	return c, nil
}

// grouped collects the peers of rules by service.
type grouped struct {
	services []Service
	peers    []*netipx.IPSetBuilder
}

func (g *grouped) group(s Service) *netipx.IPSetBuilder {
	i := slices.IndexFunc(g.services, s.equal)
	if i < 0 {
		i = len(g.services)
		g.services = append(g.services, s)
		g.peers = append(g.peers, new(netipx.IPSetBuilder))
	}
	return g.peers[i]
}

func (g *grouped) matches() ([]Match, error) {
	var all []Match
	for i, s := range g.services {
		set, err := g.peers[i].IPSet()
		if err != nil {
			return nil, fmt.Errorf("policy: %w", err)
		}
		if ranges := set.Ranges(); len(ranges) > 0 {
			all = append(all, Match{s, ranges})
		}
	}
	slices.SortFunc(all, func(a, b Match) int { return a.compare(b.Service) })
	return all, nil
}

// add sorts the peers of rules into addresses, the host (returned) and names;
// names is nil where there may be none, and with it the rules are no Allow
// rules.
func (g *grouped) add(kind string, rules []Rule, names *[]NamedMatch) (host []Match, err error) {
	for i, r := range rules {
		fail := func(err error) error {
			return fmt.Errorf("policy: %s rule %d: %w", kind, i+1, err)
		}
		s, err := r.service()
		if err != nil {
			return nil, fail(err)
		}
		if len(r.Peers) == 0 {
			return nil, fail(fmt.Errorf("no peers: %w", errdefs.ErrInvalidArgument))
		}
		var domains []string
		for _, peer := range r.Peers {
			prefix, perr := parsePrefix(peer)
			name := strings.TrimSuffix(strings.ToLower(peer), ".")
			switch {
			case peer == HostPeer:
				host = append(host, Match{Service: s})
			case perr == nil && names != nil:
				addAllowed(g.group(s), prefix)
			case perr == nil:
				g.group(s).AddPrefix(prefix)
			case names != nil && domainName.MatchString(name):
				domains = append(domains, name)
			case domainName.MatchString(name):
				return nil, fail(fmt.Errorf("peer %q: a domain name can only be allowed, its addresses are not all known: %w", peer, errdefs.ErrInvalidArgument))
			default:
				return nil, fail(fmt.Errorf("peer %q: %w", peer, perr))
			}
		}
		if len(domains) > 0 {
			slices.Sort(domains)
			*names = append(*names, NamedMatch{s, slices.Compact(domains)})
		}
	}
	return host, nil
}

// addAllowed adds a prefix without the special ranges, but for one that lies
// within such a range: that has been allowed by name.
func addAllowed(b *netipx.IPSetBuilder, prefix netip.Prefix) {
	var allowed netipx.IPSetBuilder
	allowed.AddPrefix(prefix)
	for _, s := range Special {
		if s.Bits() <= prefix.Bits() && s.Contains(prefix.Addr()) {
			b.AddPrefix(prefix)
			return
		}
		allowed.RemovePrefix(s)
	}
	// The builder of valid prefixes makes no error.
	if set, err := allowed.IPSet(); err == nil {
		b.AddSet(set)
	}
}

func parsePrefix(s string) (netip.Prefix, error) {
	prefix, err := netip.ParsePrefix(s)
	if err != nil {
		addr, aerr := netip.ParseAddr(s)
		if aerr != nil {
			return netip.Prefix{}, fmt.Errorf("want an IPv4 address, a CIDR, a domain name or %q: %w", HostPeer, errdefs.ErrInvalidArgument)
		}
		prefix = netip.PrefixFrom(addr, addr.BitLen())
	}
	if !prefix.Addr().Is4() {
		return netip.Prefix{}, fmt.Errorf("guests have IPv4 only: %w", errdefs.ErrInvalidArgument)
	}
	return prefix.Masked(), nil
}

func (r Rule) service() (Service, error) {
	proto, ok := protocols[r.Protocol]
	if !ok {
		return Service{}, fmt.Errorf("protocol %q: want tcp, udp, icmp or none: %w", r.Protocol, errdefs.ErrInvalidArgument)
	}
	s := Service{Protocol: proto}
	if len(r.Ports) > 0 && r.Protocol != "tcp" && r.Protocol != "udp" {
		return Service{}, fmt.Errorf("ports without tcp or udp: %w", errdefs.ErrInvalidArgument)
	}
	for _, text := range r.Ports {
		first, last, isRange := strings.Cut(text, "-")
		if !isRange {
			last = first
		}
		a, aerr := parsePort(first)
		b, berr := parsePort(last)
		if err := errors.Join(aerr, berr); err != nil {
			return Service{}, fmt.Errorf("ports %q: %w", text, err)
		}
		if b < a {
			return Service{}, fmt.Errorf("ports %q: the range is empty: %w", text, errdefs.ErrInvalidArgument)
		}
		s.Ports = append(s.Ports, PortRange{a, b})
	}
	s.Ports = mergePorts(s.Ports)
	return s, nil
}

func mergePorts(all []PortRange) []PortRange {
	slices.SortFunc(all, comparePorts)
	var merged []PortRange
	for _, r := range all {
		if n := len(merged); n > 0 && uint32(r.First) <= uint32(merged[n-1].Last)+1 {
			merged[n-1].Last = max(merged[n-1].Last, r.Last)
			continue
		}
		merged = append(merged, r)
	}
	return merged
}

func comparePorts(a, b PortRange) int {
	return cmp.Or(cmp.Compare(a.First, b.First), cmp.Compare(a.Last, b.Last))
}

func (s Service) compare(o Service) int {
	return cmp.Or(cmp.Compare(s.Protocol, o.Protocol), slices.CompareFunc(s.Ports, o.Ports, comparePorts))
}

func (s Service) equal(o Service) bool { return s.compare(o) == 0 }

func (p Port) compile() (Published, error) {
	proto := protocols[cmp.Or(p.Protocol, "tcp")]
	switch {
	case proto != protocols["tcp"] && proto != protocols["udp"]:
		return Published{}, fmt.Errorf("published port %s: protocol %q: want tcp or udp: %w", p, p.Protocol, errdefs.ErrInvalidArgument)
	case p.Host == 0 || p.Guest == 0:
		return Published{}, fmt.Errorf("published port %s: want ports from 1 to 65535: %w", p, errdefs.ErrInvalidArgument)
	case p.HostIP.IsValid() && !p.HostIP.Is4():
		return Published{}, fmt.Errorf("published port %s: guests have IPv4 only: %w", p, errdefs.ErrInvalidArgument)
	}
	addr := p.HostIP
	if addr.IsValid() && addr.IsUnspecified() {
		addr = netip.Addr{}
	}
	return Published{HostIP: addr, Protocol: proto, Host: p.Host, Guest: p.Guest}, nil
}
