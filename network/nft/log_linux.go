package nft

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// snapLength is how much of a stopped packet is read: its headers.
const snapLength = 128

// logDelay is how long the kernel may keep a packet back for others to come with
// it, in hundredths of a second.
const logDelay = 10

// Stopped is a packet that was dropped, as far as it could be read.
type Stopped struct {
	// Sandbox is the name of whose rules have dropped it, and Why "denied" or
	// "spoofed".
	Sandbox, Why string
	// EtherType is of the packet, Protocol that of an IPv4 packet's contents.
	EtherType uint16
	Protocol  uint8
	// Source and Destination are an IPv4 packet's, with the ports of TCP and UDP.
	Source, Destination netip.AddrPort
	// MAC is the sender's, for spoofed ones.
	MAC net.HardwareAddr
}

// Of linux/netfilter/nfnetlink_log.h.
const (
	logPacket, logConfig                    = 0, 1 // NFULNL_MSG_*
	cfgCommand, cfgMode, cfgTimeout         = 1, 2, 4
	cfgBind, cfgCopyPacket                  = 1, 2
	logHeader, logPayload, logPrefix, logHW = 1, 9, 10, 16 // NFULA_*
)

// nfgenmsg is the length of the header that all messages of netfilter have.
const nfgenmsg = 4

// Log calls f with packets that were dropped, until ctx ends, on the calling
// goroutine. Table has a LogGroup, of which there is one reader: unix.EBUSY is in
// the error if there is another.
func (t Table) Log(ctx context.Context, f func(Stopped)) error {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err == nil {
		defer conn.Close()
		err = t.bindLog(conn)
	}
	if err != nil {
		return fmt.Errorf("nflog group %d: %w", t.LogGroup, err)
	}
	err = receive(ctx, conn, func() {}, func(msgs []netlink.Message) {
		for _, m := range msgs {
			// The answer to bindLog is one, too.
			if m.Header.Type != unix.NFNL_SUBSYS_ULOG<<8|logPacket {
				continue
			}
			if s, ok := stopped(m.Data); ok {
				f(s)
			}
		}
	})
	if err != nil {
		return fmt.Errorf("nflog group %d: %w", t.LogGroup, err)
	}
	return nil
}

// bindLog asks for the packets of the group. The answer is among them: others may
// come before it.
func (t Table) bindLog(conn *netlink.Conn) error {
	ae := netlink.NewAttributeEncoder()
	ae.ByteOrder = binary.BigEndian
	ae.Uint8(cfgCommand, cfgBind)
	ae.Bytes(cfgMode, append(binary.BigEndian.AppendUint32(nil, snapLength), cfgCopyPacket, 0))
	ae.Uint32(cfgTimeout, logDelay)
	attrs, err := ae.Encode()
	if err != nil {
		return err
	}
	header := append([]byte{unix.AF_UNSPEC, unix.NFNETLINK_V0}, be16(t.LogGroup)...)
	_, err = conn.Send(netlink.Message{
		Header: netlink.Header{Type: unix.NFNL_SUBSYS_ULOG<<8 | logConfig, Flags: netlink.Request | netlink.Acknowledge},
		Data:   append(header, attrs...),
	})
	return err
}

// stopped reads a message of the kernel's; ok is false for one that no rule of
// this package has sent.
func stopped(data []byte) (s Stopped, ok bool) {
	if len(data) < nfgenmsg {
		return s, false
	}
	ad, err := netlink.NewAttributeDecoder(data[nfgenmsg:])
	if err != nil {
		return s, false
	}
	var packet []byte
	for ad.Next() {
		b := ad.Bytes()
		switch ad.Type() {
		case logPrefix:
			s.Why, s.Sandbox, ok = strings.Cut(strings.TrimSuffix(string(bytes.TrimRight(b, "\x00")), ": "), " ")
		case logHeader:
			if len(b) >= 2 {
				s.EtherType = binary.BigEndian.Uint16(b)
			}
		case logHW:
			if len(b) >= etherSource+6 {
				s.MAC = net.HardwareAddr(b[etherSource:][:6])
			}
		case logPayload:
			packet = b
		}
	}
	if s.EtherType == unix.ETH_P_IP {
		s.readIP(packet)
	}
	return s, ok && ad.Err() == nil
}

// readIP reads the headers of an IPv4 packet (RFC 791), if they are there.
func (s *Stopped) readIP(p []byte) {
	if len(p) < 20 || p[0]>>4 != 4 {
		return
	}
	s.Protocol = p[9]
	var from, to uint16
	rest, first := p[min(int(p[0]&15)*4, len(p)):], binary.BigEndian.Uint16(p[6:])&0x1fff == 0
	if first && len(rest) >= 4 && (s.Protocol == unix.IPPROTO_TCP || s.Protocol == unix.IPPROTO_UDP) {
		from, to = binary.BigEndian.Uint16(rest), binary.BigEndian.Uint16(rest[2:])
	}
	s.Source = netip.AddrPortFrom(netip.AddrFrom4([4]byte(p[ipSource:])), from)
	s.Destination = netip.AddrPortFrom(netip.AddrFrom4([4]byte(p[ipDestination:])), to)
}
