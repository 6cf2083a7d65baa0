package policy

import (
	"net/netip"
	"slices"
	"strings"

	"go4.org/netipx"
)

// Flow is who opens what to whom.
type Flow struct {
	// Peer is the far end: the destination of a flow of the guest's, the source
	// of one to the guest.
	Peer netip.Addr
	// Host is true if Peer is the host itself.
	Host bool
	// Protocol is an IP protocol number, Port the destination port.
	Protocol uint8
	Port     uint16
}

// Opens says whether the guest may open a flow. Addresses of domain names are
// not known here and not allowed.
func (c *Compiled) Opens(f Flow) bool {
	if matches(c.Deny, f) || f.Host && offers(c.DenyHost, f) {
		return false
	}
	if matches(c.Resolvers, f) {
		return true
	}
	if f.Host {
		return offers(c.Host, f)
	}
	return matches(c.Allow, f)
}

// OpensNamed says whether the guest may open a flow to an address that is open as
// one of the i-th of Names.
func (c *Compiled) OpensNamed(f Flow, i int) bool {
	return c.Opens(f) || !f.Host && !matches(c.Deny, f) && c.Names[i].includes(f)
}

// Takes says whether a flow to the guest passes. published is true if it has
// come by a port of the host's, and Port is the guest's all the same.
func (c *Compiled) Takes(f Flow, published bool) bool {
	return matches(c.Accept, f) || f.Host || published && slices.ContainsFunc(c.Publish, func(p Published) bool {
		return p.Protocol == f.Protocol && p.Guest == f.Port
	})
}

func matches(all []Match, f Flow) bool {
	return slices.ContainsFunc(all, func(m Match) bool {
		return m.includes(f) && slices.ContainsFunc(m.Peers, func(r netipx.IPRange) bool { return r.Contains(f.Peer) })
	})
}

// offers is matches for services of the host, where peers mean nothing.
func offers(all []Match, f Flow) bool {
	return slices.ContainsFunc(all, func(m Match) bool { return m.includes(f) })
}

func (s Service) includes(f Flow) bool {
	if s.Protocol == 0 {
		return true
	}
	return s.Protocol == f.Protocol && (len(s.Ports) == 0 || slices.ContainsFunc(s.Ports, func(r PortRange) bool {
		return r.First <= f.Port && f.Port <= r.Last
	}))
}

// Includes says whether one of the names is domain, or stands for it: "*." for
// whatever is below. Case and a final dot do not count.
func (m NamedMatch) Includes(domain string) bool {
	domain = strings.TrimSuffix(strings.ToLower(domain), ".")
	return slices.ContainsFunc(m.Domains, func(name string) bool {
		below, wild := strings.CutPrefix(name, "*")
		return name == domain || wild && len(domain) > len(below) && strings.HasSuffix(domain, below)
	})
}
