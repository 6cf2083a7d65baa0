// Package vmmapi is a bridge to libvmmapi, the library through which FreeBSD
// programs make and hold virtual machines of vmm(4). It is written for FreeBSD
// 15 on amd64 and linked by cgo; everywhere else, and with CGO_ENABLED=0, every
// call answers ErrNotLinked, which is an errdefs.ErrNotImplemented. With cgo and
// the headers of an older FreeBSD it does not compile, and says so (bridge.h).
//
// # What is taken care of
//
// Functions that answer in a static or a thread-local buffer are copied out of
// it before anyone else can call them. Arguments on which the library asserts,
// and so would abort the process, are checked first. A handle that is closed
// while a call is under way is freed after that call. Errors are *Error: they
// say what was attempted, what it means, and what to do.
//
// # What is left to the caller
//
// Most calls are ioctls that cannot be interrupted. Those on a vCPU (registers,
// descriptors, capabilities, statistics) wait until that vCPU is idle, and those
// on all vCPUs (SetupMemory, Reinit, SupportsCheckpoint) until all are: with a
// bhyve(8) that is stopped or wedged they may wait for as long as that lasts,
// holding an operating system thread. So call them before the machine runs,
// from a short-lived process, or from a goroutine that can be abandoned.
// Suspend, ActiveVCPUs, Topology, the clock and Destroy never wait for a vCPU.
//
// Guest memory belongs to every process that has mapped it, and is freed when
// the last of them is gone: SetupMemory is for a short-lived process as well.
//
// # How it is tested
//
// Everything but the cgo file runs over the library interface, on which unit
// tests put a scripted fake. The cgo file and its C shims are compiled, linked
// to a stand-in for the library, and run on Linux, too: see
// testdata/standin.
package vmmapi
