// Package bhyve runs machines as bhyve(8) processes on FreeBSD 15.
//
// What is here is what can be known without a FreeBSD host, and it is the same
// on every operating system: how a virtual machine is named, what bhyve(8) is
// told, how a Linux guest is put into a virtual machine's memory, and what
// bhyve(8)'s end means. Launch, which puts them together with processes, taps
// and receipts, is not there yet and answers errdefs.ErrNotImplemented.
package bhyve
