package link

import (
	"net/netip"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Offsets and bits of the headers that the filter reads: RFC 8200 section 3,
// RFC 9293 section 3.1.
const (
	ip6Source      = 8
	ip6Destination = 24
	tcpFlags       = 13
	tcpSYN         = 0x02
	tcpACK         = 0x10
)

// filterIngress lets nothing into the thread's network namespace but TCP
// segments from the guest's link address to the host's that do not open a
// connection. In the terms of nft(8):
//
//	table inet link {
//		chain ingress {
//			type filter hook prerouting priority raw; policy drop;
//			ip6 saddr fe80::2 ip6 daddr fe80::1 tcp flags & (syn|ack) != syn accept
//		}
//	}
//
// The namespace has no listener and no route, so this is a second fence. It is
// needed because some kernel tables have one limit for all namespaces: with
// neighbour discovery let through, a guest could fill the host's neighbour
// table by claiming one address after the other.
func filterIngress() error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "link"})
	drop := nftables.ChainPolicyDrop
	chain := c.AddChain(&nftables.Chain{
		Name: "ingress", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRaw, Policy: &drop,
	})
	var match []expr.Any
	match = append(match, meta(expr.MetaKeyNFPROTO, unix.NFPROTO_IPV6)...)
	match = append(match, meta(expr.MetaKeyL4PROTO, unix.IPPROTO_TCP)...)
	match = append(match, address(ip6Source, agentproto.GuestLinkAddr)...)
	match = append(match, address(ip6Destination, agentproto.HostLinkAddr)...)
	match = append(match,
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: tcpFlags, Len: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{tcpSYN | tcpACK}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{tcpSYN}},
		&expr.Verdict{Kind: expr.VerdictAccept},
	)
	c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: match})
	return c.Flush()
}

func meta(key expr.MetaKey, value uint8) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: key, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{value}},
	}
}

func address(offset uint32, addr netip.Addr) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 16},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: addr.AsSlice()},
	}
}
