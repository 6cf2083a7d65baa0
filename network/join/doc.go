// Package join lends the interface of a network namespace to a machine: one that
// a client such as CRI, nerdctl or `ctr --cni` has had filled by CNI plugins.
// Policy there is the plugins' affair.
//
// A tap is made in the namespace, and whatever comes in by the interface is sent
// out by the tap and the other way round (tc-mirred(8)), below the namespace's own
// network stack, which sees nothing any more. The guest takes over the
// interface's hardware address, addresses, routes and MTU. The plugins find
// everything as they have left it when they take it down.
package join

import (
	"net"
	"net/netip"
)

// Tap is what the tap is called in every namespace.
const Tap = "bhyve0"

// Interface is what a guest has to make its own.
type Interface struct {
	Name string
	MAC  net.HardwareAddr
	// MTU is in bytes.
	MTU       int
	Addresses []netip.Prefix
	Routes    []Route
	// Ignored are further interfaces of the namespace. A machine has one.
	Ignored []string
}

// Route is one of the routes by an Interface that do not come with its
// addresses.
type Route struct {
	Destination netip.Prefix
	// Gateway and Source are invalid for none.
	Gateway, Source netip.Addr
	// OnLink is true for a gateway that no other route leads to.
	OnLink bool
	Metric int
}
