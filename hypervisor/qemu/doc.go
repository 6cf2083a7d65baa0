// Package qemu runs machines as QEMU processes on Linux: under KVM where it
// really works, else in software (TCG). It is how everything above package
// hypervisor is developed and tested without FreeBSD.
//
// QEMU gets its sockets and its tap as open files and is told everything else
// on its command line. The process is driven by signals and by QMP.
package qemu
