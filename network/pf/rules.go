package pf

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/policy"
)

// Sandbox is what the rules of one sandbox are made from.
type Sandbox struct {
	// Name is the anchor's, below that of the network of Bridge: at most 63 bytes.
	Name string
	// Tap is the guest's, a member of Bridge, by which the host reaches Address.
	Tap, Bridge string
	Address     netip.Addr
	Policy      *policy.Compiled
	// Opened are the open addresses of domain names, by the policy's Names.
	Opened [][]netip.Addr
	// Pipe is what the guest's frames go through, 0 if nothing.
	Pipe Pipe
}

// Anchor is the path of the sandbox's anchor.
func (s Sandbox) Anchor() string { return NetworkAnchor(s.Bridge) + "/" + s.Name }

// publishedTag is on packets that have come by a published port.
const publishedTag = "cubepublished"

// The labels of rules, by which packets are counted.
func (s Sandbox) denied() string  { return "denied:" + s.Name }
func (s Sandbox) spoofed() string { return "spoofed:" + s.Name }

// Rules is the sandbox's ruleset. Its bandwidth is elsewhere: see Pipe.
func (s Sandbox) Rules() string {
	p := s.Policy
	r := &ruleset{}
	deny, resolver := r.tables("deny", p.Deny), r.tables("resolver", p.Resolvers)
	allow, accept := r.tables("allow", p.Allow), r.tables("accept", p.Accept)
	for i := range p.Names {
		var addrs []netip.Addr
		if i < len(s.Opened) {
			addrs = s.Opened[i]
		}
		table(r, namesTable(i), addrs)
	}
	for _, port := range p.Publish {
		to := "(self)"
		if port.HostIP.IsValid() {
			to = port.HostIP.String()
		}
		// What the host sends to itself is package forward's.
		r.line("no rdr on lo0 inet proto %s from any to %s port %d", policy.ProtocolName(port.Protocol), to, port.Host)
		if port.HostIP.IsLoopback() {
			continue
		}
		r.line("rdr on ! %s inet proto %s from any to %s port %d tag %s -> %s port %d",
			Group, policy.ProtocolName(port.Protocol), to, port.Host, publishedTag, s.Address, port.Guest)
	}

	from, to := " from "+s.Address.String(), " to "+s.Address.String()
	spoofed, denied := fmt.Sprintf(" label %q", s.spoofed()), fmt.Sprintf(" label %q", s.denied())
	// At the tap it is said who speaks, and nothing is remembered: a state would
	// be believed before this is asked.
	r.line("block drop in log quick on %s inet6 all%s", s.Tap, spoofed)
	r.line("block drop in log quick on %s inet from ! %s to any%s", s.Tap, s.Address, spoofed)
	r.line("pass in quick on %s inet%s to any no state", s.Tap, from)

	deniesIn, passesIn := "block drop in log quick on "+s.Bridge+" inet", "pass in quick on "+s.Bridge+" inet"
	deniesOut, passesOut := "block drop out log quick on "+s.Bridge+" inet", "pass out quick on "+s.Bridge+" inet"
	const bound = " keep state (if-bound)"
	state := fmt.Sprintf(" keep state (max %d, if-bound)", p.MaxFlows)
	for i, m := range p.Deny {
		r.services(m.Service, deniesIn, from+" to <"+deny[i]+">", denied)
	}
	for _, m := range p.DenyHost {
		r.services(m.Service, deniesIn, from+" to (self)", denied)
	}
	for i, m := range p.Resolvers {
		r.services(m.Service, passesIn, from+" to <"+resolver[i]+">", state)
	}
	for _, m := range p.Host {
		r.services(m.Service, passesIn, from+" to (self)", state)
	}
	r.line("%s%s to (self)%s", deniesIn, from, denied)
	r.line("%s%s to (self:broadcast)%s", deniesIn, from, denied)
	for i, m := range p.Allow {
		r.services(m.Service, passesIn, from+" to <"+allow[i]+">", state)
	}
	for i, m := range p.Names {
		r.services(m.Service, passesIn, from+" to <"+namesTable(i)+">", state)
	}
	r.line("%s%s to any%s", deniesIn, from, denied)

	r.line("%s from (self)%s%s", passesOut, to, bound)
	for _, port := range p.Publish {
		if port.HostIP.IsLoopback() {
			continue
		}
		r.line("%s proto %s from any%s port %d%s tagged %s", passesOut, policy.ProtocolName(port.Protocol), to, port.Guest, bound, publishedTag)
	}
	for i, m := range p.Accept {
		r.services(m.Service, passesOut, " from <"+accept[i]+">"+to, bound)
	}
	r.line("%s from any%s%s", deniesOut, to, denied)
	return r.String()
}

// ruleset is text under way.
type ruleset struct{ strings.Builder }

func (r *ruleset) line(format string, args ...any) {
	fmt.Fprintf(r, format+"\n", args...)
}

// namesTable has the open addresses of the i-th of a policy's names.
func namesTable(i int) string { return fmt.Sprintf("names-%d", i) }

// tables defines a table for the peers of each match, and returns their names. pf
// has no ranges, only prefixes.
func (r *ruleset) tables(kind string, all []policy.Match) []string {
	names := make([]string, len(all))
	for i, m := range all {
		names[i] = fmt.Sprintf("%s-%d", kind, i)
		var prefixes []netip.Prefix
		for _, peer := range m.Peers {
			prefixes = append(prefixes, peer.Prefixes()...)
		}
		table(r, names[i], prefixes)
	}
	return names
}

// table defines a table.
func table[T fmt.Stringer](r *ruleset, name string, peers []T) {
	fmt.Fprintf(r, "table <%s> persist", name)
	if len(peers) > 0 {
		r.WriteString(" {")
		for _, peer := range peers {
			r.WriteString(" " + peer.String())
		}
		r.WriteString(" }")
	}
	r.WriteString("\n")
}

// services adds a rule: action and peers as given, the protocol between them and
// the ports behind.
func (r *ruleset) services(s policy.Service, action, peers, rest string) {
	if s.Protocol != 0 {
		action += " proto " + policy.ProtocolName(s.Protocol)
	}
	if len(s.Ports) == 0 {
		r.line("%s%s%s", action, peers, rest)
		return
	}
	var ports []string
	for _, p := range s.Ports {
		ports = append(ports, strings.ReplaceAll(p.String(), "-", ":"))
	}
	r.line("%s%s port { %s }%s", action, peers, strings.Join(ports, " "), rest)
}

// Dispatch is what the ruleset of a network's anchor is made from.
type Dispatch struct {
	// Bridge is the bridge's interface.
	Bridge string
	Subnet netip.Prefix
	// Egress are the interfaces by which guests can leave the host, with the first
	// address of each.
	Egress []string
	// Sandboxes are those that have an anchor. Policies are not used.
	Sandboxes []Sandbox
}

// Rules is the ruleset of the network's anchor.
func (d Dispatch) Rules() string {
	r := &ruleset{}
	// pf skips those of one direction at once.
	for i := range 2 {
		for _, s := range d.Sandboxes {
			if s.Pipe != 0 {
				r.line("%s", s.shapes()[i])
			}
		}
	}
	// A guest of another network has to see who speaks: it trusts the host.
	r.line("no nat on %s inet from %s to any", Group, d.Subnet)
	for _, name := range d.Egress {
		r.line("nat on %s inet from %s to ! %[2]s -> (%[1]s:0)", name, d.Subnet)
	}
	r.line(`rdr-anchor "*"`)
	for _, s := range d.Sandboxes {
		r.line("%s", s.lines()[0])
	}
	for _, s := range d.Sandboxes {
		for _, line := range s.lines()[1:] {
			r.line("%s", line)
		}
	}
	return r.String()
}

// lines are those by which packets find the sandbox's rules: on the tap, and on
// the bridge in both directions.
func (s Sandbox) lines() []string {
	return []string{
		fmt.Sprintf("anchor %q in on %s", s.Name, s.Tap),
		fmt.Sprintf("anchor %q in on %s inet from %s to any", s.Name, s.Bridge, s.Address),
		fmt.Sprintf("anchor %q out on %s inet from any to %s", s.Name, s.Bridge, s.Address),
	}
}
