package link

import (
	"bytes"
	"encoding/binary"
	"net/netip"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto"
	"golang.org/x/sys/unix"
)

// packet makes an Ethernet frame with an IPv6 packet from the guest, with the
// checksum of the payload put in at offset sum.
func packet(src, dst netip.Addr, proto byte, payload []byte, sum int) []byte {
	payload = bytes.Clone(payload)
	pseudo := append(src.AsSlice(), dst.AsSlice()...)
	pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(len(payload)))
	pseudo = append(pseudo, 0, 0, 0, proto)
	binary.BigEndian.PutUint16(payload[sum:], checksum(append(pseudo, payload...)))

	f := append([]byte{}, vnetHeader[:]...)
	f = append(f, agentproto.HostLinkMAC...)
	f = append(f, agentproto.GuestLinkMAC...)
	f = append(f, 0x86, 0xdd, 0x60, 0, 0, 0)
	f = binary.BigEndian.AppendUint16(f, uint16(len(payload)))
	f = append(f, proto, 255)
	f = append(append(f, src.AsSlice()...), dst.AsSlice()...)
	return append(f, payload...)
}

// checksum is RFC 1071's.
func checksum(b []byte) uint16 {
	var sum uint32
	for len(b) >= 2 {
		sum += uint32(binary.BigEndian.Uint16(b))
		b = b[2:]
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

func tcpSegment(src netip.Addr, srcPort, dstPort uint16, flags byte) []byte {
	var h [20]byte
	binary.BigEndian.PutUint16(h[0:], srcPort)
	binary.BigEndian.PutUint16(h[2:], dstPort)
	binary.BigEndian.PutUint32(h[4:], 1000)
	binary.BigEndian.PutUint32(h[8:], 2000)
	h[12], h[13], h[14] = 5<<4, flags, 0xff
	return packet(src, agentproto.HostLinkAddr, unix.IPPROTO_TCP, h[:], 16)
}
