package network

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// flowsOf matches the connection-tracking entries that an address has a part in,
// in either direction, before or after translation.
type flowsOf net.IP

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (f flowsOf) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	addr := net.IP(f)
	for _, t := range []netlink.IPTuple{flow.Forward, flow.Reverse} {
		if addr.Equal(t.SrcIP) || addr.Equal(t.DstIP) {
			return true
		}
	}
	return false
}

// killStates forgets every flow of an address.
func (h *linux) killStates(addr netip.Addr) (Released, error) {
	filter := flowsOf(addr.AsSlice())
	killed, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, filter)
	if err != nil {
		return Released{}, fmt.Errorf("flows of %s: %w", addr, err)
	}
	released := Released{StatesBefore: int(killed)}
	if killed == 0 {
		return released, nil
	}
	left, err := netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
	if err != nil {
		return released, fmt.Errorf("flows of %s: %w", addr, err)
	}
	for _, flow := range left {
		if filter.MatchConntrackFlow(flow) {
			released.StatesAfter++
		}
	}
	return released, nil
}
