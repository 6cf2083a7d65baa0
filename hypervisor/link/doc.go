// Package link makes the private channel between host and guest for machines
// without AF_VSOCK: a tap device that belongs to one machine, over which the
// host dials the agent by TCP on IPv6 link-local addresses. Addresses and MACs
// are agentproto's and the same for every machine.
//
// Connections are opened by the host only. A guest, however hostile, can open
// none, and reaches nothing but the connections that the host has opened to
// it. See docs/decisions/0002-link-tap.md.
package link
