package nft

import (
	"net"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"go4.org/netipx"
	"golang.org/x/sys/unix"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/policy"
)

// logLimit is how many denied packets of a sandbox are logged a minute.
const logLimit = 10

// minBurst is what may pass at once beside what a second has room for, however low
// the limit: some packets of the 64 KiB that the host handles as one.
const minBurst = 256 << 10

var broadcast = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

func (b *batch) install(old []*nftables.Set, ports []nftables.SetElement) {
	b.clear(old, ports)
	s := b.sandbox
	b.AddObj(&nftables.NamedObj{Table: b.ip, Name: s.denied(), Type: nftables.ObjTypeCounter, Obj: &expr.Counter{}})
	b.denyRules()
	b.flowsRules()
	b.outRules()
	b.inRules()
	b.natRules()
	for _, e := range b.entries() {
		b.note(b.SetAddElements(e.set, []nftables.SetElement{e.elem}))
	}
	b.ingressRules()
}

// denyRules are the end of what is denied: counted, and logged now and then.
func (b *batch) denyRules() {
	s := b.sandbox
	b.rule(s.deny(), count(s.denied()))
	b.rule(s.deny(), b.logged("denied"))
	b.rule(s.deny(), drop)
}

func (b *batch) logged(what string) []expr.Any {
	name, to := b.sandbox.Name, &expr.Log{Key: 1 << unix.NFTA_LOG_PREFIX}
	if group := b.table.LogGroup; group != 0 {
		to.Key |= 1<<unix.NFTA_LOG_GROUP | 1<<unix.NFTA_LOG_SNAPLEN
		to.Group, to.Snaplen = group, snapLength
	}
	// NF_LOG_PREFIXLEN is 128.
	to.Data = []byte(what + " " + name[:min(len(name), 100)] + ": ")
	return []expr.Any{
		&expr.Limit{Type: expr.LimitTypePkts, Rate: logLimit, Unit: expr.LimitTimeMinute, Burst: logLimit},
		to,
	}
}

// flowsRules are where what the guest opens is let pass, unless it has too many
// open.
func (b *batch) flowsRules() {
	s := b.sandbox
	b.rule(s.flows(), ctBits(expr.CtKeySTATE, ctStateNew),
		[]expr.Any{&expr.Connlimit{Count: s.Policy.MaxFlows, Flags: expr.NFT_CONNLIMIT_F_INV}}, toChain(s.deny()))
}

// outRules are for what the guest sends: to the host itself and elsewhere.
func (b *batch) outRules() {
	s, p := b.sandbox, b.sandbox.Policy
	deny, resolvers := b.sets("deny", p.Deny), b.sets("resolver", p.Resolvers)
	b.limit(s.out())
	for _, chain := range []string{s.out(), s.host()} {
		for _, a := range answers() {
			b.rule(chain, a, goBack)
		}
		b.matches(chain, ipDestination, p.Deny, deny, toChain(s.deny()))
	}
	b.services(s.host(), p.DenyHost, toChain(s.deny()))
	for _, chain := range []string{s.out(), s.host()} {
		b.matches(chain, ipDestination, p.Resolvers, resolvers, toChain(s.flows()))
	}
	b.services(s.host(), p.Host, toChain(s.flows()))
	b.matches(s.out(), ipDestination, p.Allow, b.sets("allow", p.Allow), toChain(s.flows()))
	for i, m := range p.Names {
		set := b.set(s.set("names", i), nil)
		for _, service := range services(m.Service) {
			// What is open outlives the name's record: an address that is talked to
			// stays.
			b.rule(s.out(), ctBits(expr.CtKeySTATE, ctStateEstablished), inSet(ipDestination, set, false), service, refresh(set), toChain(s.flows()))
			b.rule(s.out(), inSet(ipDestination, set, false), service, toChain(s.flows()))
		}
	}
	b.rule(s.out(), toChain(s.deny()))
	b.rule(s.host(), toChain(s.deny()))
}

// inRules are for what comes to the guest from elsewhere than the host.
func (b *batch) inRules() {
	s, p := b.sandbox, b.sandbox.Policy
	b.limit(s.in())
	for _, a := range answers() {
		b.rule(s.in(), a, goBack)
	}
	for _, port := range p.Publish {
		b.rule(s.in(), ctBits(expr.CtKeySTATUS, ctStatusDNAT), portIs(port.Protocol, port.Guest), goBack)
	}
	b.matches(s.in(), ipSource, p.Accept, b.sets("accept", p.Accept), goBack)
	b.rule(s.in(), toChain(s.deny()))
}

// natRules lead published ports to the guest.
func (b *batch) natRules() {
	s := b.sandbox
	var elems []nftables.SetElement
	for _, port := range s.Policy.Publish {
		match := portIs(port.Protocol, port.Host)
		if port.HostIP.IsValid() {
			match = join(ipIs(ipDestination, port.HostIP), match)
		}
		b.rule(s.nat(), match, []expr.Any{
			&expr.Immediate{Register: reg32a, Data: s.Address.AsSlice()},
			&expr.Immediate{Register: reg32b, Data: be16(port.Guest)},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: reg32a, RegProtoMin: reg32b, Specified: true},
		})
		elems = append(elems, nftables.SetElement{
			Key:         portKey(port.Protocol, port.Host),
			VerdictData: &expr.Verdict{Kind: expr.VerdictGoto, Chain: s.nat()},
		})
	}
	if len(elems) > 0 {
		b.note(b.SetAddElements(b.table.shared().published, elems))
	}
}

// ingressRules let in from the tap what bears the guest's own addresses and is
// for the gateway: IPv4 and the ARP that it needs. Nothing else, no IPv6, no
// VLAN, no frame of a bridge's own protocols.
func (b *batch) ingressRules() {
	s, t := b.sandbox, b.table
	table := b.AddTable(t.netdev())
	b.AddObj(&nftables.NamedObj{Table: table, Name: s.spoofed(), Type: nftables.ObjTypeCounter, Obj: &expr.Counter{}})
	policy := nftables.ChainPolicyDrop
	chain := b.AddChain(&nftables.Chain{
		Name: s.Name, Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookIngress, Priority: nftables.ChainPriorityFilter, Policy: &policy, Device: s.Tap,
	})
	b.FlushChain(chain)
	arp := join(etherType(unix.ETH_P_ARP), etherIs(etherSource, s.MAC),
		// Ethernet and IPv4 addresses, a request or an answer.
		load(expr.PayloadBaseNetworkHeader, arpHeader, 6, []byte{0, 1, 8, 0, 6, 4}, expr.CmpOpEq),
		load(expr.PayloadBaseNetworkHeader, arpSenderMAC, 6, s.MAC, expr.CmpOpEq),
		ipIs(arpSenderIP, s.Address))
	for _, match := range [][]expr.Any{
		join(etherType(unix.ETH_P_IP), etherIs(etherSource, s.MAC), etherIs(etherDestination, t.MAC), ipIs(ipSource, s.Address)),
		join(arp, etherIs(etherDestination, t.MAC)),
		join(arp, etherIs(etherDestination, broadcast), ipIs(arpTargetIP, t.Gateway)),
		// Its own address: the announcement of a guest that has just got it.
		join(arp, etherIs(etherDestination, broadcast), ipIs(arpTargetIP, s.Address)),
	} {
		b.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: join(match, marked, accept)})
	}
	b.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: count(s.spoofed())})
	b.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: join(b.logged("spoofed"), drop)})
}

// limit drops what is over the policy's bandwidth.
func (b *batch) limit(chain string) {
	rate := b.sandbox.Policy.Bandwidth
	if rate == 0 {
		return
	}
	burst := uint32(min(max(rate/10, minBurst), 1<<31))
	b.rule(chain, []expr.Any{&expr.Limit{Type: expr.LimitTypePktBytes, Rate: rate, Unit: expr.LimitTimeSecond, Over: true, Burst: burst}}, drop)
}

// matches adds rules for each of all, whose peers are in the set beside it.
func (b *batch) matches(chain string, offset uint32, all []policy.Match, sets []*nftables.Set, then []expr.Any) {
	for i, m := range all {
		for _, service := range services(m.Service) {
			b.rule(chain, inSet(offset, sets[i], false), service, then)
		}
	}
}

// services adds rules for each of all, whoever the peer is.
func (b *batch) services(chain string, all []policy.Match, then []expr.Any) {
	for _, m := range all {
		for _, service := range services(m.Service) {
			b.rule(chain, service, then)
		}
	}
}

func (b *batch) sets(kind string, all []policy.Match) []*nftables.Set {
	sets := make([]*nftables.Set, len(all))
	for i, m := range all {
		sets[i] = b.set(b.sandbox.set(kind, i), m.Peers)
	}
	return sets
}

// set makes a set of address ranges; one without peers has single addresses that
// time out.
func (b *batch) set(name string, peers []netipx.IPRange) *nftables.Set {
	set := &nftables.Set{Table: b.ip, ID: b.nextSet, Name: name, KeyType: nftables.TypeIPAddr, Interval: peers != nil, HasTimeout: peers == nil, Dynamic: peers == nil}
	b.nextSet++
	var elems []nftables.SetElement
	for _, r := range peers {
		elems = append(elems, nftables.SetElement{Key: r.From().AsSlice()})
		// An interval without an end goes to the last address.
		if end := r.To().Next(); end.IsValid() {
			elems = append(elems, nftables.SetElement{Key: end.AsSlice(), IntervalEnd: true})
		}
	}
	b.note(b.AddSet(set, nil))
	for chunk := range slices.Chunk(elems, maxElements) {
		b.note(b.SetAddElements(set, chunk))
	}
	return set
}

// maxElements bounds the elements of one message: an attribute has a length of
// 16 bits, and an element takes up 20 to 28 bytes.
const maxElements = 1000

// services matches protocol and ports, one list of expressions a range.
func services(s policy.Service) [][]expr.Any {
	switch {
	case s.Protocol == 0:
		return [][]expr.Any{nil}
	case len(s.Ports) == 0:
		return [][]expr.Any{protocolIs(s.Protocol)}
	}
	var all [][]expr.Any
	for _, r := range s.Ports {
		if r.First == r.Last {
			all = append(all, portIs(s.Protocol, r.First))
			continue
		}
		all = append(all, join(protocolIs(s.Protocol), []expr.Any{
			&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseTransportHeader, Offset: transportDestination, Len: 2},
			&expr.Range{Op: expr.CmpOpEq, Register: reg1, FromData: be16(r.First), ToData: be16(r.Last)},
		}))
	}
	return all
}

func portIs(protocol uint8, port uint16) []expr.Any {
	return join(protocolIs(protocol), load(expr.PayloadBaseTransportHeader, transportDestination, 2, be16(port), expr.CmpOpEq))
}
