package nft

import (
	"encoding/binary"
	"net"
	"net/netip"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Registers: 1 is the first of 16 bytes; 8 to 23 are those of 4 bytes that lie
// in the same place (linux/netfilter/nf_tables.h).
const (
	reg1   = unix.NFT_REG_1
	reg32a = unix.NFT_REG32_00
	reg32b = unix.NFT_REG32_01
)

// Offsets in headers: RFC 791, RFC 826, RFC 9293; Ethernet's from its
// destination on.
const (
	ipSource, ipDestination          = 12, 16
	transportDestination             = 2
	etherDestination                 = 0
	etherSource                      = 6
	arpHeader                        = 0
	arpSenderMAC, arpSenderIP        = 8, 14
	arpTargetIP                      = 24
	ctDirReply                       = 1 // IP_CT_DIR_REPLY
	rtnLocal                         = unix.RTN_LOCAL
	ctStateEstablished               = expr.CtStateBitESTABLISHED
	ctStateRelated                   = expr.CtStateBitRELATED
	ctStateNew                       = expr.CtStateBitNEW
	ctStatusDNAT              uint32 = 1 << 5 // IPS_DST_NAT, linux/netfilter/nf_conntrack_common.h
)

func join(parts ...[]expr.Any) []expr.Any {
	var all []expr.Any
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

func load(base expr.PayloadBase, offset, length uint32, want []byte, op expr.CmpOp) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: reg1, Base: base, Offset: offset, Len: length},
		&expr.Cmp{Op: op, Register: reg1, Data: want},
	}
}

func etherIs(offset uint32, mac net.HardwareAddr) []expr.Any {
	return load(expr.PayloadBaseLLHeader, offset, 6, mac, expr.CmpOpEq)
}

func ipIs(offset uint32, addr netip.Addr) []expr.Any {
	return load(expr.PayloadBaseNetworkHeader, offset, 4, addr.AsSlice(), expr.CmpOpEq)
}

func inPrefix(offset uint32, p netip.Prefix) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4},
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: 4, Mask: net.CIDRMask(p.Bits(), 32), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: p.Addr().AsSlice()},
	}
}

// inSet looks a header's address up in a set.
func inSet(offset uint32, s *nftables.Set, invert bool) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4},
		&expr.Lookup{SourceRegister: reg1, SetName: s.Name, SetID: s.ID, Invert: invert},
	}
}

// idle is how long an address of a name is kept after the last packet to it, once
// a flow to it is open.
const idle = 5 * time.Minute

// refresh lets the element that a destination is in live on.
func refresh(s *nftables.Set) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseNetworkHeader, Offset: ipDestination, Len: 4},
		&expr.Dynset{SrcRegKey: reg1, SetName: s.Name, SetID: s.ID, Operation: unix.NFT_DYNSET_OP_UPDATE, Timeout: idle},
	}
}

// byMap does what a map of verdicts says for a header's address.
func byMap(offset uint32, m *nftables.Set) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4},
		&expr.Lookup{SourceRegister: reg1, SetName: m.Name, SetID: m.ID, IsDestRegSet: true},
	}
}

// byPort does what a map of verdicts says for protocol and destination port.
func byPort(m *nftables.Set) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg32a},
		&expr.Payload{DestRegister: reg32b, Base: expr.PayloadBaseTransportHeader, Offset: transportDestination, Len: 2},
		&expr.Lookup{SourceRegister: reg32a, SetName: m.Name, SetID: m.ID, IsDestRegSet: true},
	}
}

func ifname(key expr.MetaKey, name string, op expr.CmpOp) []expr.Any {
	data := make([]byte, unix.IFNAMSIZ)
	copy(data, name)
	return []expr.Any{&expr.Meta{Key: key, Register: reg1}, &expr.Cmp{Op: op, Register: reg1, Data: data}}
}

func protocolIs(n uint8) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg1}, &expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: []byte{n}}}
}

func etherType(n uint16) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyPROTOCOL, Register: reg1}, &expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: be16(n)}}
}

// destinedToHost is true for destinations that are the host's own addresses.
func destinedToHost() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: reg1, ResultADDRTYPE: true, FlagDADDR: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: binaryutil.NativeEndian.PutUint32(rtnLocal)},
	}
}

// ctBits is true if the connection has one of the bits.
func ctBits(key expr.CtKey, bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: key, Register: reg1},
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg1, Data: make([]byte, 4)},
	}
}

func isReply() []expr.Any {
	return []expr.Any{&expr.Ct{Key: expr.CtKeyDIRECTION, Register: reg1}, &expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: []byte{ctDirReply}}}
}

// answers are packets of flows that somebody was allowed to open, in the other
// direction, and the errors about such flows.
func answers() [][]expr.Any {
	return [][]expr.Any{
		join(ctBits(expr.CtKeySTATE, ctStateEstablished), isReply()),
		ctBits(expr.CtKeySTATE, ctStateRelated),
	}
}

func count(name string) []expr.Any {
	return []expr.Any{&expr.Objref{Type: int(nftables.ObjTypeCounter), Name: name}}
}

func verdict(kind expr.VerdictKind, chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: kind, Chain: chain}}
}

var (
	drop   = verdict(expr.VerdictDrop, "")
	accept = verdict(expr.VerdictAccept, "")
	marked = []expr.Any{
		&expr.Immediate{Register: reg1, Data: binaryutil.NativeEndian.PutUint32(Mark)},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: reg1},
	}
	goBack  = verdict(expr.VerdictReturn, "")
	toChain = func(name string) []expr.Any { return verdict(expr.VerdictGoto, name) }
)

func be16(n uint16) []byte { return binary.BigEndian.AppendUint16(nil, n) }

// portKey is the key of a set of protocols with ports: each part takes up whole
// registers.
func portKey(protocol uint8, port uint16) []byte {
	return append([]byte{protocol, 0, 0, 0}, append(be16(port), 0, 0)...)
}
