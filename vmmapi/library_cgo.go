//go:build cgo && amd64 && (freebsd || vmmapi_standin)

package vmmapi

/*
#cgo LDFLAGS: -lvmmapi -lutil
#include <stdlib.h>
#include "bridge.h"
*/
import "C"

import (
	"syscall"
	"time"
	"unsafe"
)

// The tag vmmapi_standin builds this file on Linux, against the declarations
// and the stand-in library in testdata/standin: for tests only.

var native library = libvmmapi{}

type libvmmapi struct{}

// Nothing is called here that answers through errno: errno is a thread's, and
// two calls from Go may be on two threads. That is what bridge.h is for.

func ctx(h handle) *C.struct_vmctx { return (*C.struct_vmctx)(h) }

// toError makes an error of what the functions in bridge.h answer.
func toError(r C.int) error {
	if r == 0 {
		return nil
	}
	return syscall.Errno(r)
}

func (libvmmapi) create(name string) error {
	cname := C.CString(name)
	defer C.free(unsafe.Pointer(cname))
	return toError(C.bridge_create(cname))
}

func (libvmmapi) open(name string) (handle, error) {
	cname := C.CString(name)
	defer C.free(unsafe.Pointer(cname))
	var c *C.struct_vmctx
	err := toError(C.bridge_open(cname, &c))
	return handle(c), err
}

func (libvmmapi) close(h handle)   { C.vm_close(ctx(h)) }
func (libvmmapi) destroy(h handle) { C.vm_destroy(ctx(h)) }

func (libvmmapi) reinit(h handle) error {
	return toError(C.bridge_reinit(ctx(h)))
}

var suspendHows = [...]uint32{
	SuspendReset:       C.VM_SUSPEND_RESET,
	SuspendPowerOff:    C.VM_SUSPEND_POWEROFF,
	SuspendHalt:        C.VM_SUSPEND_HALT,
	SuspendTripleFault: C.VM_SUSPEND_TRIPLEFAULT,
}

func (libvmmapi) suspend(h handle, how SuspendHow) error {
	return toError(C.bridge_suspend(ctx(h), suspendHows[how]))
}

func (libvmmapi) systemMemory(h handle) (uint64, error) {
	var size C.uint64_t
	err := toError(C.bridge_system_memory(ctx(h), &size))
	return uint64(size), err
}

func (libvmmapi) setupMemory(h handle, size uint64, wired bool) error {
	var w C.int
	if wired {
		w = 1
	}
	return toError(C.bridge_setup_memory(ctx(h), C.uint64_t(size), w))
}

func (libvmmapi) memorySizes(h handle) (low, high uint64) {
	return uint64(C.vm_get_lowmem_size(ctx(h))), uint64(C.vm_get_highmem_size(ctx(h)))
}

func (libvmmapi) mapGPA(h handle, gpa, n uint64) unsafe.Pointer {
	return C.vm_map_gpa(ctx(h), C.vm_paddr_t(gpa), C.size_t(n))
}

// registers are the library's numbers, which are not ours to know.
var registers = [...]C.int{
	RAX: C.VM_REG_GUEST_RAX, RBX: C.VM_REG_GUEST_RBX, RCX: C.VM_REG_GUEST_RCX, RDX: C.VM_REG_GUEST_RDX,
	RSI: C.VM_REG_GUEST_RSI, RDI: C.VM_REG_GUEST_RDI, RBP: C.VM_REG_GUEST_RBP, RSP: C.VM_REG_GUEST_RSP,
	R8: C.VM_REG_GUEST_R8, R9: C.VM_REG_GUEST_R9, R10: C.VM_REG_GUEST_R10, R11: C.VM_REG_GUEST_R11,
	R12: C.VM_REG_GUEST_R12, R13: C.VM_REG_GUEST_R13, R14: C.VM_REG_GUEST_R14, R15: C.VM_REG_GUEST_R15,
	RIP: C.VM_REG_GUEST_RIP, RFLAGS: C.VM_REG_GUEST_RFLAGS,
	CR0: C.VM_REG_GUEST_CR0, CR2: C.VM_REG_GUEST_CR2, CR3: C.VM_REG_GUEST_CR3, CR4: C.VM_REG_GUEST_CR4,
	EFER: C.VM_REG_GUEST_EFER,
	CS:   C.VM_REG_GUEST_CS, DS: C.VM_REG_GUEST_DS, ES: C.VM_REG_GUEST_ES, FS: C.VM_REG_GUEST_FS,
	GS: C.VM_REG_GUEST_GS, SS: C.VM_REG_GUEST_SS, LDTR: C.VM_REG_GUEST_LDTR, TR: C.VM_REG_GUEST_TR,
	GDTR: C.VM_REG_GUEST_GDTR, IDTR: C.VM_REG_GUEST_IDTR,
}

func (libvmmapi) setRegister(h handle, vcpu int, r Register, v uint64) error {
	return toError(C.bridge_set_register(ctx(h), C.int(vcpu), registers[r], C.uint64_t(v)))
}

func (libvmmapi) register(h handle, vcpu int, r Register) (uint64, error) {
	var v C.uint64_t
	err := toError(C.bridge_get_register(ctx(h), C.int(vcpu), registers[r], &v))
	return uint64(v), err
}

func (libvmmapi) setDescriptor(h handle, vcpu int, r Register, d Descriptor) error {
	return toError(C.bridge_set_desc(ctx(h), C.int(vcpu), registers[r],
		C.uint64_t(d.Base), C.uint32_t(d.Limit), C.uint32_t(d.Access)))
}

func (libvmmapi) descriptor(h handle, vcpu int, r Register) (Descriptor, error) {
	var base C.uint64_t
	var limit, access C.uint32_t
	err := toError(C.bridge_get_desc(ctx(h), C.int(vcpu), registers[r], &base, &limit, &access))
	return Descriptor{uint64(base), uint32(limit), uint32(access)}, err
}

var capabilities = [...]uint32{
	ExitOnHLT:         C.VM_CAP_HALT_EXIT,
	ExitOnPause:       C.VM_CAP_PAUSE_EXIT,
	UnrestrictedGuest: C.VM_CAP_UNRESTRICTED_GUEST,
	EnableINVPCID:     C.VM_CAP_ENABLE_INVPCID,
}

func (libvmmapi) setCapability(h handle, vcpu int, c Capability, v int) error {
	return toError(C.bridge_set_capability(ctx(h), C.int(vcpu), capabilities[c], C.int(v)))
}

func (libvmmapi) capability(h handle, vcpu int, c Capability) (int, error) {
	var v C.int
	err := toError(C.bridge_get_capability(ctx(h), C.int(vcpu), capabilities[c], &v))
	return int(v), err
}

func (libvmmapi) resetVCPU(h handle, vcpu int) error {
	return toError(C.bridge_reset_vcpu(ctx(h), C.int(vcpu)))
}

func (libvmmapi) cpus(h handle, set cpuSet) ([]int, error) {
	var cset C.int
	switch set {
	case activeCPUs:
		cset = C.BRIDGE_ACTIVE
	case suspendedCPUs:
		cset = C.BRIDGE_SUSPENDED
	case debugCPUs:
		cset = C.BRIDGE_DEBUG
	}
	var ids [C.CPU_SETSIZE]C.int
	var n C.int
	if err := toError(C.bridge_cpus(ctx(h), cset, &ids[0], C.int(len(ids)), &n)); err != nil {
		return nil, err
	}
	out := make([]int, n)
	for i := range out {
		out[i] = int(ids[i])
	}
	return out, nil
}

func (libvmmapi) setTopology(h handle, t Topology) error {
	return toError(C.bridge_set_topology(ctx(h),
		C.uint16_t(t.Sockets), C.uint16_t(t.Cores), C.uint16_t(t.Threads), C.uint16_t(t.MaxVCPUs)))
}

func (libvmmapi) topology(h handle) (Topology, error) {
	var sockets, cores, threads, maxcpus C.uint16_t
	err := toError(C.bridge_topology(ctx(h), &sockets, &cores, &threads, &maxcpus))
	return Topology{uint16(sockets), uint16(cores), uint16(threads), uint16(maxcpus)}, err
}

// maxStats is several times what any kernel has: it refuses to register more
// than 64 (sys/dev/vmm/vmm_stat.c).
const maxStats = 512

func (libvmmapi) stats(h handle, vcpu int) ([]uint64, time.Time, error) {
	var values [maxStats]C.uint64_t
	var n C.int
	var sec, usec C.int64_t
	if err := toError(C.bridge_stats(ctx(h), C.int(vcpu), &values[0], maxStats, &n, &sec, &usec)); err != nil {
		return nil, time.Time{}, err
	}
	out := make([]uint64, n)
	for i := range out {
		out[i] = uint64(values[i])
	}
	return out, time.Unix(int64(sec), int64(usec)*int64(time.Microsecond)), nil
}

func (libvmmapi) statName(h handle, index int) (string, bool) {
	var name [128]C.char // struct vm_stat_desc
	C.bridge_stat_name(ctx(h), C.int(index), &name[0], C.size_t(len(name)))
	s := C.GoString(&name[0])
	return s, s != ""
}

func (libvmmapi) setClock(h handle, t time.Time) error {
	return toError(C.bridge_set_clock(ctx(h), C.int64_t(t.Unix())))
}

func (libvmmapi) clock(h handle) (time.Time, error) {
	var sec C.int64_t
	err := toError(C.bridge_clock(ctx(h), &sec))
	return time.Unix(int64(sec), 0), err
}

func (libvmmapi) restoreTime(h handle) error {
	return toError(C.bridge_restore_time(ctx(h)))
}

func (libvmmapi) maxVCPUs() (int, error) {
	var n C.uint
	err := toError(C.bridge_max_vcpus(&n))
	return int(n), err
}
