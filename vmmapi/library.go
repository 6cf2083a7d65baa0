package vmmapi

import (
	"time"
	"unsafe"
)

// handle is a struct vmctx pointer.
type handle unsafe.Pointer

// library is libvmmapi, function by function, with Go's types. Errors are
// syscall.Errno. Implementations hold no state; nothing is checked in them that
// could be checked above them.
type library interface {
	// create is vm_create, which unlike vm_openf says that a name is taken.
	create(name string) error
	// open is vm_open.
	open(name string) (handle, error)
	// close is vm_close; h is gone after it.
	close(h handle)
	// destroy is vm_destroy, which reports nothing and closes h in any case.
	destroy(h handle)
	reinit(h handle) error
	suspend(h handle, how SuspendHow) error

	// systemMemory is vm_get_memseg of the system memory, 0 if there is none.
	systemMemory(h handle) (uint64, error)
	// setupMemory is vm_set_memflags and vm_setup_memory.
	setupMemory(h handle, size uint64, wired bool) error
	memorySizes(h handle) (low, high uint64)
	// mapGPA is vm_map_gpa: nil where the range is not in one piece of memory.
	mapGPA(h handle, gpa, n uint64) unsafe.Pointer

	setRegister(h handle, vcpu int, r Register, v uint64) error
	register(h handle, vcpu int, r Register) (uint64, error)
	setDescriptor(h handle, vcpu int, r Register, d Descriptor) error
	descriptor(h handle, vcpu int, r Register) (Descriptor, error)
	setCapability(h handle, vcpu int, c Capability, v int) error
	capability(h handle, vcpu int, c Capability) (int, error)
	resetVCPU(h handle, vcpu int) error

	// cpus is one of vm_active_cpus, vm_suspended_cpus and vm_debug_cpus.
	cpus(h handle, set cpuSet) ([]int, error)
	setTopology(h handle, t Topology) error
	topology(h handle) (Topology, error)

	// stats is vm_get_stats, copied on the thread that made the call.
	stats(h handle, vcpu int) ([]uint64, time.Time, error)
	// statName is vm_get_stat_desc, whose answer is in a static buffer: callers
	// hold statNameMu. It reports false beyond the last one.
	statName(h handle, index int) (string, bool)

	setClock(h handle, t time.Time) error
	clock(h handle) (time.Time, error)
	// restoreTime is vm_restore_time.
	restoreTime(h handle) error
	// maxVCPUs is the sysctl hw.vmm.maxcpu.
	maxVCPUs() (int, error)
}

// cpuSet is a set of a VM's vCPUs that can be asked for.
type cpuSet int

const (
	activeCPUs cpuSet = iota
	suspendedCPUs
	debugCPUs
)
