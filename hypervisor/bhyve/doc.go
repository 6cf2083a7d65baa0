// Package bhyve runs machines as bhyve(8) processes on FreeBSD 15.
//
// A machine's process begins as this program again (see Become): it makes the
// virtual machine, loads the guest into it and then becomes bhyve(8). So no
// guest memory is ever mapped in the process that owns the machine, and what
// loads and what runs have one pid, one receipt and one end.
//
// What needs FreeBSD is behind two small interfaces, vmm and tapLink; the rest
// is the same, and tested, everywhere. Where libvmmapi is not linked in,
// Capabilities and Launch answer errdefs.ErrNotImplemented.
package bhyve
