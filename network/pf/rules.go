package pf

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/containerd/errdefs"
	"go4.org/netipx"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/policy"
)

// Sandbox is what the rules of one sandbox are made from.
type Sandbox struct {
	// Name is the anchor's, below Root: at most 63 bytes.
	Name    string
	Tap     string
	Address netip.Addr
	Policy  *policy.Compiled
}

// Anchor is the path of the sandbox's anchor.
func (s Sandbox) Anchor() string { return Root + "/" + s.Name }

// The labels of rules, by which packets are counted.
func (s Sandbox) denied() string  { return "denied:" + s.Name }
func (s Sandbox) spoofed() string { return "spoofed:" + s.Name }

// Rules is the sandbox's ruleset. errdefs.ErrNotImplemented names what of the
// policy pf has no words for.
func (s Sandbox) Rules() (string, error) {
	p := s.Policy
	if p.Bandwidth > 0 {
		return "", fmt.Errorf("policy: bandwidth: pf leaves that to dummynet(4): %w", errdefs.ErrNotImplemented)
	}
	r := &ruleset{}
	deny, resolver := r.tables("deny", p.Deny), r.tables("resolver", p.Resolvers)
	allow, accept := r.tables("allow", p.Allow), r.tables("accept", p.Accept)
	for i := range p.Names {
		r.table(nameTable(i), nil)
	}
	for _, port := range p.Publish {
		to := "(self)"
		if port.HostIP.IsValid() {
			if port.HostIP.IsLoopback() {
				return "", fmt.Errorf("policy: port %d on %s: pf does not redirect what the host itself sends: %w", port.Host, port.HostIP, errdefs.ErrNotImplemented)
			}
			to = port.HostIP.String()
		}
		r.line("rdr on ! %s inet proto %s from any to %s port %d -> %s port %d", Group, policy.ProtocolName(port.Protocol), to, port.Host, s.Address, port.Guest)
	}

	in, out := "in log quick on "+s.Tap, "out log quick on "+s.Tap
	passIn, passOut := "pass in quick on "+s.Tap+" inet", "pass out quick on "+s.Tap+" inet"
	from, to := " from "+s.Address.String(), " to "+s.Address.String()
	state := fmt.Sprintf(" keep state (max %d)", p.MaxFlows)

	r.line("block drop %s inet6 all label %q", in, s.spoofed())
	r.line("block drop quick on %s inet6 all", s.Tap)
	r.line("block drop %s inet from ! %s to any label %q", in, s.Address, s.spoofed())
	for i, m := range p.Deny {
		r.services(m.Service, "block drop "+in+" inet", from+" to <"+deny[i]+">", fmt.Sprintf(" label %q", s.denied()))
	}
	for _, m := range p.DenyHost {
		r.services(m.Service, "block drop "+in+" inet", from+" to (self)", fmt.Sprintf(" label %q", s.denied()))
	}
	for i, m := range p.Resolvers {
		r.services(m.Service, passIn, from+" to <"+resolver[i]+">", state)
	}
	for _, m := range p.Host {
		r.services(m.Service, passIn, from+" to (self)", state)
	}
	r.line("block drop %s inet%s to (self) label %q", in, from, s.denied())
	for i, m := range p.Allow {
		r.services(m.Service, passIn, from+" to <"+allow[i]+">", state)
	}
	for i, m := range p.Names {
		r.services(m.Service, passIn, from+" to <"+nameTable(i)+">", state)
	}
	r.line("block drop %s all label %q", in, s.denied())

	r.line("%s from (self)%s keep state", passOut, to)
	for _, port := range p.Publish {
		r.line("%s proto %s from any%s port %d keep state", passOut, policy.ProtocolName(port.Protocol), to, port.Guest)
	}
	for i, m := range p.Accept {
		r.services(m.Service, passOut, " from <"+accept[i]+">"+to, " keep state")
	}
	r.line("block drop %s all label %q", out, s.denied())
	return r.String(), nil
}

func nameTable(i int) string { return fmt.Sprintf("names-%d", i) }

// ruleset is text under way.
type ruleset struct{ strings.Builder }

func (r *ruleset) line(format string, args ...any) {
	fmt.Fprintf(r, format+"\n", args...)
}

// tables defines a table for the peers of each match, and returns their names.
func (r *ruleset) tables(kind string, all []policy.Match) []string {
	names := make([]string, len(all))
	for i, m := range all {
		names[i] = fmt.Sprintf("%s-%d", kind, i)
		r.table(names[i], m.Peers)
	}
	return names
}

// table defines a table. pf has no ranges, only prefixes.
func (r *ruleset) table(name string, peers []netipx.IPRange) {
	fmt.Fprintf(r, "table <%s> persist", name)
	if len(peers) > 0 {
		r.WriteString(" {")
		for _, peer := range peers {
			for _, p := range peer.Prefixes() {
				r.WriteString(" " + p.String())
			}
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

// Dispatch is what the ruleset of Root is made from.
type Dispatch struct {
	// Bridge is the bridge's interface. What is on it has come by a tap or goes to
	// one, and is judged there.
	Bridge string
	Subnet netip.Prefix
	// Egress is the interface by which guests leave the host, with its address.
	Egress string
	// Sandboxes are those that have an anchor. Only names and taps are used.
	Sandboxes []Sandbox
}

// Rules is Root's ruleset.
func (d Dispatch) Rules() string {
	r := &ruleset{}
	if d.Egress != "" {
		r.line("nat on %s inet from %s to ! %[2]s -> (%[1]s)", d.Egress, d.Subnet)
	}
	r.line("pass quick on %s all no state", d.Bridge)
	for _, s := range d.Sandboxes {
		r.line("anchor %q on %s", s.Name, s.Tap)
	}
	return r.String()
}
