// Package agent is the guest's side of a sandbox: process 1 of the virtual
// machine, which turns a bare kernel into a place where containers run and
// answers the host on the link.
//
// It is found here as follows.
//
//	agent.go    Run: the order of things, from the kernel's exec to power-off
//	pid1.go     mounts, kernel modules, children: what any init owes
//	link.go     the link's interface, and the listeners on it
//	server.go   the control port: ttrpc, and how errors leave it
//	streams.go  the data ports: connections that wait to be claimed
//	relay.go    standard streams: connection to FIFO and back
//	forward.go  connections of the host to the containers' ports
//	task.go     containerd's Task service, in front of containerd's own;
//	            process.go: what it remembers of each process
//	bundle.go   OCI bundles; share.go: the 9p mounts they are made of
//	events.go   task events, kept until the host has seen them
//	system.go   health, clock, power; shutdown.go: the orderly end
//
// Containers are run by containerd's runc task service and a stock OCI
// runtime; nothing here knows how a namespace is made. The guest belongs to
// its tenant, so nothing here protects the host: that is the host's business,
// on its side of the link.
//
// The package is Linux only, as guests are.
package agent
