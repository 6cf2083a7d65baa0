package vmmapi

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"time"
)

// Register is a register of a vCPU. For a segment register it is the selector.
// vmm(4) gives no access to floating-point state or to model-specific
// registers other than these.
type Register int

// The registers (enum vm_reg_name).
const (
	RAX Register = iota + 1
	RBX
	RCX
	RDX
	RSI
	RDI
	RBP
	RSP
	R8
	R9
	R10
	R11
	R12
	R13
	R14
	R15
	RIP
	RFLAGS
	CR0
	CR2
	CR3
	CR4
	EFER
	CS
	DS
	ES
	FS
	GS
	SS
	LDTR
	TR
	GDTR
	IDTR
)

var registerNames = [...]string{
	RAX: "RAX", RBX: "RBX", RCX: "RCX", RDX: "RDX", RSI: "RSI", RDI: "RDI", RBP: "RBP", RSP: "RSP",
	R8: "R8", R9: "R9", R10: "R10", R11: "R11", R12: "R12", R13: "R13", R14: "R14", R15: "R15",
	RIP: "RIP", RFLAGS: "RFLAGS", CR0: "CR0", CR2: "CR2", CR3: "CR3", CR4: "CR4", EFER: "EFER",
	CS: "CS", DS: "DS", ES: "ES", FS: "FS", GS: "GS", SS: "SS", LDTR: "LDTR", TR: "TR", GDTR: "GDTR", IDTR: "IDTR",
}

func (r Register) String() string {
	if r.valid() {
		return registerNames[r]
	}
	return fmt.Sprintf("Register(%d)", int(r))
}

func (r Register) valid() bool { return r >= RAX && r <= IDTR }

// hasDescriptor: the registers with a hidden part.
func (r Register) hasDescriptor() bool { return r >= CS && r <= IDTR }

// hasValue: GDTR and IDTR are descriptors only.
func (r Register) hasValue() bool { return r.valid() && r != GDTR && r != IDTR }

// Descriptor is the hidden part of a segment register, or GDTR or IDTR.
type Descriptor struct {
	Base uint64
	// Limit is in bytes.
	Limit uint32
	// Access has VMX's format on either vendor's hardware (struct seg_desc in
	// machine/vmm.h).
	Access uint32
}

// Capability is an optional ability of a vCPU.
type Capability int

const (
	// ExitOnHLT makes HLT leave the guest, so that an idle one takes no time.
	ExitOnHLT Capability = iota + 1
	// ExitOnPause makes PAUSE leave the guest.
	ExitOnPause
	// UnrestrictedGuest lets the vCPU run without paging.
	UnrestrictedGuest
	// EnableINVPCID lets the guest use INVPCID.
	EnableINVPCID
)

func (c Capability) valid() bool { return c >= ExitOnHLT && c <= EnableINVPCID }

// VCPU is one virtual CPU. Its methods wait until it is out of the guest, and
// the kernel makes it if it has never been used.
type VCPU struct {
	vm *VM
	id int
}

// VCPU names a virtual CPU. Nothing is done yet. It must be one that the
// virtual machine is going to have: the kernel makes those that are asked for,
// and a checkpoint then contains them. ErrInvalid beyond MaxVCPUs.
func (vm *VM) VCPU(id int) (*VCPU, error) {
	t, err := vm.Topology()
	if err != nil {
		return nil, err
	}
	if id < 0 || id >= int(t.MaxVCPUs) {
		return nil, invalid("vCPU of", vm.name, "%d, want 0 to %d", id, int(t.MaxVCPUs)-1)
	}
	return &VCPU{vm, id}, nil
}

// ID is the vCPU's number.
func (c *VCPU) ID() int { return c.id }

func (c *VCPU) call(what string, f func(h handle) error) error {
	return c.vm.call(fmt.Sprintf("%s vCPU %d of", what, c.id), f)
}

// SetRegister sets a register; for a segment register, its selector.
func (c *VCPU) SetRegister(r Register, v uint64) error {
	if !r.hasValue() {
		return invalid("set register of", c.vm.name, "%s has no value", r)
	}
	return c.call("set "+r.String()+" of", func(h handle) error { return c.vm.host.lib.setRegister(h, c.id, r, v) })
}

// Register reads a register; of a segment register, its selector.
func (c *VCPU) Register(r Register) (v uint64, err error) {
	if !r.hasValue() {
		return 0, invalid("read register of", c.vm.name, "%s has no value", r)
	}
	err = c.call("read "+r.String()+" of", func(h handle) (err error) {
		v, err = c.vm.host.lib.register(h, c.id, r)
		return err
	})
	return v, err
}

// SetDescriptor sets the hidden part of a segment register, or GDTR or IDTR.
func (c *VCPU) SetDescriptor(r Register, d Descriptor) error {
	if !r.hasDescriptor() {
		return invalid("set descriptor of", c.vm.name, "%s has none", r)
	}
	return c.call("set "+r.String()+" of", func(h handle) error { return c.vm.host.lib.setDescriptor(h, c.id, r, d) })
}

// Descriptor reads the hidden part of a segment register, or GDTR or IDTR.
func (c *VCPU) Descriptor(r Register) (d Descriptor, err error) {
	if !r.hasDescriptor() {
		return d, invalid("read descriptor of", c.vm.name, "%s has none", r)
	}
	err = c.call("read "+r.String()+" of", func(h handle) (err error) {
		d, err = c.vm.host.lib.descriptor(h, c.id, r)
		return err
	})
	return d, err
}

// SetCapability turns an ability on or off.
func (c *VCPU) SetCapability(k Capability, on bool) error {
	if !k.valid() {
		return invalid("set capability of", c.vm.name, "no such capability: %d", k)
	}
	v := 0
	if on {
		v = 1
	}
	return c.call("set capability of", func(h handle) error { return c.vm.host.lib.setCapability(h, c.id, k, v) })
}

// Capability reads whether an ability is on. ErrFailed with ENOENT where the
// hardware lacks it.
func (c *VCPU) Capability(k Capability) (on bool, err error) {
	if !k.valid() {
		return false, invalid("read capability of", c.vm.name, "no such capability: %d", k)
	}
	err = c.call("read capability of", func(h handle) error {
		v, err := c.vm.host.lib.capability(h, c.id, k)
		on = v != 0
		return err
	})
	var e *Error
	if errors.As(err, &e) && e.Errno == syscall.ENOENT {
		e.Kind, e.Advice = ErrFailed, "the hardware lacks it"
	}
	return on, err
}

// Reset sets the vCPU's registers to their state after power-on.
func (c *VCPU) Reset() error {
	return c.call("reset", func(h handle) error { return c.vm.host.lib.resetVCPU(h, c.id) })
}

// ActiveVCPUs are the numbers of the vCPUs that bhyve(8) has activated,
// ascending. None are while the virtual machine is only loaded.
func (vm *VM) ActiveVCPUs() ([]int, error) { return vm.cpus("read active vCPUs of", activeCPUs) }

// SuspendedVCPUs are those that have left the guest for good, see Suspend.
func (vm *VM) SuspendedVCPUs() ([]int, error) {
	return vm.cpus("read suspended vCPUs of", suspendedCPUs)
}

// DebugVCPUs are those that are held: by a debugger, for a checkpoint, or
// because the guest has not started them yet.
func (vm *VM) DebugVCPUs() ([]int, error) { return vm.cpus("read held vCPUs of", debugCPUs) }

func (vm *VM) cpus(op string, set cpuSet) (ids []int, err error) {
	err = vm.call(op, func(h handle) (err error) {
		ids, err = vm.host.lib.cpus(h, set)
		return err
	})
	return ids, err
}

// Stats are a vCPU's statistics.
type Stats struct {
	// At is when the kernel read them.
	At time.Time
	// Values by the kernel's description, such as "vcpu total runtime" (in
	// ticks of the time stamp counter). Which there are depends on the kernel
	// and on the processor. "Resident memory" and "Wired memory" are the whole
	// virtual machine's, in bytes, and are given for vCPU 0 only.
	Values map[string]uint64
}

// Stats reads the vCPU's statistics. ErrInvalid for a vCPU that is not active:
// to ask for it would make it.
func (c *VCPU) Stats() (Stats, error) {
	names, err := c.vm.statNames()
	if err != nil {
		return Stats{}, err
	}
	active, err := c.vm.ActiveVCPUs()
	if err != nil {
		return Stats{}, err
	}
	if !slices.Contains(active, c.id) {
		return Stats{}, invalid("read statistics of", c.vm.name, "vCPU %d is not active", c.id)
	}
	s := Stats{Values: make(map[string]uint64, len(names))}
	err = c.call("read statistics of", func(h handle) error {
		values, at, err := c.vm.host.lib.stats(h, c.id)
		if err != nil {
			return err
		}
		s.At = at
		for i, v := range values[:min(len(values), len(names))] {
			s.Values[names[i]] = v
		}
		return nil
	})
	return s, err
}

// statNameMu: vm_get_stat_desc answers in one static buffer for the whole
// process.
var statNameMu sync.Mutex

// maxStatNames bounds the search for the last one.
const maxStatNames = 1024

// statNames are the names of the statistics by index, which differ between
// kernels and between processors' vendors. They are read once.
func (vm *VM) statNames() ([]string, error) {
	vm.mu.Lock()
	names := vm.stats
	vm.mu.Unlock()
	if names != nil {
		return names, nil
	}
	err := vm.call("read statistics' names of", func(h handle) error {
		for i := range maxStatNames {
			statNameMu.Lock()
			name, ok := vm.host.lib.statName(h, i)
			statNameMu.Unlock()
			if !ok {
				break
			}
			names = append(names, name)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	vm.mu.Lock()
	vm.stats = names
	vm.mu.Unlock()
	return names, nil
}
