package agentproto

import (
	"net"
	"net/netip"
	"path"
)

// Version is the revision of everything in this package. Host and agent must
// agree on it exactly: they are built and shipped together, so a difference
// means a stale guest image and is refused at the first Hello.
const Version uint32 = 1

// The ports of the link. They are AF_VSOCK ports where the machine has vsock
// and TCP ports where the link is a private tap.
const (
	// PortControl carries ttrpc: containerd's Task service and package v1.
	PortControl uint32 = 1
	// PortStdio carries one standard stream of one process a connection,
	// opened with a preface.
	PortStdio uint32 = 2
	// PortNinep carries one 9P2000.L session a connection, opened with a
	// preface. The host dials, and then serves: the guest is the 9p client.
	PortNinep uint32 = 3
	// PortForward carries one TCP connection to a port of the containers' loopback
	// a connection, opened with a preface whose id is the port's number in decimal.
	// The agent accepts it when it has connected.
	PortForward uint32 = 4
)

// The two ends of a link that is a tap. Every machine has the same ones: the
// tap is private to the machine, so they need not be unique, and a restored
// checkpoint finds its link unchanged. Both sides install the other's MAC as a
// permanent neighbour, so that no neighbour discovery delays the first dial
// and none has to be let through the firewall.
var (
	HostLinkAddr  = netip.MustParseAddr("fe80::1")
	GuestLinkAddr = netip.MustParseAddr("fe80::2")

	// Locally administered (bit 1 of the first octet), unicast.
	HostLinkMAC  = net.HardwareAddr{0x02, 0x62, 0x68, 0x79, 0x00, 0x01}
	GuestLinkMAC = net.HardwareAddr{0x02, 0x62, 0x68, 0x79, 0x00, 0x02}
)

// BundleDir is the directory in the guest of the bundle with this id.
func BundleDir(id string) string { return path.Join("/run/bundles", id) }

// RootfsTarget is the only place in a bundle that a share can be mounted at.
const RootfsTarget = "rootfs"

// RootfsDir is where the agent mounts the root filesystem of bundle id.
func RootfsDir(id string) string { return path.Join(BundleDir(id), RootfsTarget) }

// VolumeDir is where the agent mounts the volume with this name.
func VolumeDir(name string) string { return path.Join("/run/volumes", name) }
