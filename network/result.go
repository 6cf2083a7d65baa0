package network

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/policy"
)

// Request asks for a sandbox's network.
type Request struct {
	// ID names the sandbox: at most MaxIDLength letters, digits, '-', '_', '.'.
	ID string
	// Policy is the sandbox's; nil for the network's own. For a sandbox that has
	// its network already it is not looked at: see Network.SetPolicy.
	Policy *policy.Policy
	// NetNS is the path of a network namespace that is to get the interface, in
	// place of a machine; Interface is its name there. Linux only.
	NetNS, Interface string
	// Network, if set, names the CNI network that has asked.
	Network string
	// Port, if set, is the tap of a machine that is there already: it becomes the
	// sandbox's, in place of a new one, and is destroyed with the sandbox's network.
	Port *Port
}

// Port is a tap that is down, in a network namespace other than the network's.
type Port struct {
	// NetNS is the namespace's path, empty on FreeBSD; Tap is the tap's name in it.
	NetNS, Tap string
}

// Result is a sandbox's network.
type Result struct {
	ID string `json:"id"`
	// Bridge and Tap are interfaces of the host's.
	Bridge string `json:"bridge"`
	Tap    string `json:"tap"`
	// Anchor begins the names of the rules: chains of nftables, an anchor of pf.
	Anchor string `json:"anchor"`
	// Address is the guest's, MAC its hardware address. The guest is the only one
	// in its network: whatever it sends, it sends to Gateway.
	Address netip.Addr   `json:"address"`
	MAC     MAC          `json:"mac"`
	Gateway netip.Addr   `json:"gateway"`
	MTU     int          `json:"mtu"`
	DNS     []netip.Addr `json:"dns,omitempty"`
	// NetNS, Interface and Network are the request's.
	NetNS     string `json:"netns,omitempty"`
	Interface string `json:"interface,omitempty"`
	Network   string `json:"network,omitempty"`
}

// MAC is a hardware address, in JSON as text: "02:cb:0a:4d:00:0a".
type MAC net.HardwareAddr

func (m MAC) String() string { return net.HardwareAddr(m).String() }

// MarshalText implements encoding.TextMarshaler.
func (m MAC) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (m *MAC) UnmarshalText(text []byte) error {
	addr, err := net.ParseMAC(string(text))
	*m = MAC(addr)
	return err
}

// CNI is the result in CNI's format, of version 1.1.0 of its specification.
// guest is the name of the interface in the guest, netns that of the namespace
// that CNI was given.
func (r *Result) CNI(guest, netns string) *current.Result {
	one, zero := net.CIDRMask(32, 32), net.CIDRMask(0, 32)
	gateway, inGuest := net.IP(r.Gateway.AsSlice()), 2
	result := &current.Result{
		CNIVersion: current.ImplementedSpecVersion,
		Interfaces: []*current.Interface{
			{Name: r.Bridge},
			{Name: r.Tap, Mtu: r.MTU},
			{Name: guest, Mac: r.MAC.String(), Mtu: r.MTU, Sandbox: netns},
		},
		IPs: []*current.IPConfig{{
			Interface: &inGuest,
			Address:   net.IPNet{IP: net.IP(r.Address.AsSlice()), Mask: one},
			Gateway:   gateway,
		}},
		Routes: []*types.Route{
			{Dst: net.IPNet{IP: gateway, Mask: one}},
			{Dst: net.IPNet{IP: net.IPv4zero.To4(), Mask: zero}, GW: gateway},
		},
	}
	for _, addr := range r.DNS {
		result.DNS.Nameservers = append(result.DNS.Nameservers, addr.String())
	}
	return result
}

// Env is the result as lines of KEY=VALUE, for shells.
func (r *Result) Env() []byte {
	var b bytes.Buffer
	var dns []string
	for _, addr := range r.DNS {
		dns = append(dns, addr.String())
	}
	for _, kv := range [][2]string{
		{"ID", r.ID}, {"BRIDGE", r.Bridge}, {"TAP", r.Tap}, {"ANCHOR", r.Anchor}, {"ADDRESS", r.Address.String()},
		{"MAC", r.MAC.String()}, {"GATEWAY", r.Gateway.String()}, {"MTU", fmt.Sprint(r.MTU)},
		// The only value with a space in it.
		{"DNS", "'" + strings.Join(dns, " ") + "'"},
	} {
		fmt.Fprintf(&b, "%s=%s\n", kv[0], kv[1])
	}
	return b.Bytes()
}

// Released is what Del has done.
type Released struct {
	// StatesBefore and StatesAfter are how many flows from or to the guest the
	// host's firewall kept track of.
	StatesBefore int `json:"states_before"`
	StatesAfter  int `json:"states_after"`
}

// Counters are what has passed a sandbox's tap, as the guest sees it, and what
// has not.
type Counters struct {
	SentPackets     uint64 `json:"sent_packets"`
	SentBytes       uint64 `json:"sent_bytes"`
	ReceivedPackets uint64 `json:"received_packets"`
	ReceivedBytes   uint64 `json:"received_bytes"`
	// Denied are packets that the policy has stopped, in both directions; Spoofed
	// those that did not bear the guest's own addresses.
	Denied  uint64 `json:"denied"`
	Spoofed uint64 `json:"spoofed"`
}
