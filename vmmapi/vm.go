package vmmapi

import (
	"errors"
	"fmt"
	"regexp"
	"sync"
	"syscall"
	"time"
)

// MaxNameLength is what bhyve's checkpoint socket, /var/run/bhyve/NAME, leaves
// for the name of a virtual machine; vmm(4) itself would take 229 characters.
const MaxNameLength = 88

var validName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]*$`)

// ValidateName returns an ErrInvalid for a name that a virtual machine cannot
// have. The library does not answer for one that is too long: it aborts the
// process.
func ValidateName(name string) error {
	if len(name) > MaxNameLength || !validName.MatchString(name) {
		return invalid("name", fmt.Sprintf("%q", name), "want 1 to %d letters, digits, '_', '.', '-', not beginning with '.' or '-'", MaxNameLength)
	}
	return nil
}

// VM is a handle on a virtual machine. It is safe for concurrent use. The
// virtual machine does not end with it: see Close and Destroy.
type VM struct {
	host *Host
	name string

	mu sync.Mutex
	h  handle
	// users counts the calls under way; h is freed with the last of them.
	users  int
	closed bool
	// stats are the names of the kernel's statistics, once they were asked for.
	stats []string
}

// Create makes a virtual machine. ErrExists if there is one of that name.
func (h *Host) Create(name string) (*VM, error) {
	const op = "create"
	if err := h.usable(op, name); err != nil {
		return nil, err
	}
	if err := repeat(func() error { return h.lib.create(name) }); err != nil {
		return nil, h.openError(op, name, err)
	}
	return h.Open(name)
}

// Open opens a virtual machine that exists. ErrNotFound if there is none.
func (h *Host) Open(name string) (*VM, error) {
	const op = "open"
	if err := h.usable(op, name); err != nil {
		return nil, err
	}
	var hd handle
	err := repeat(func() (err error) {
		hd, err = h.lib.open(name)
		return err
	})
	if err != nil {
		return nil, h.openError(op, name, err)
	}
	return &VM{host: h, name: name, h: hd}, nil
}

func (h *Host) usable(op, name string) error {
	if err := h.linked(op, name); err != nil {
		return err
	}
	return ValidateName(name)
}

// Name is the virtual machine's name.
func (vm *VM) Name() string { return vm.name }

// Close gives up the handle. Calls under way end as they would have; the
// virtual machine, and what this process has mapped of its memory, stay. It is
// legal to call it again.
func (vm *VM) Close() {
	vm.mu.Lock()
	free := !vm.closed && vm.users == 0
	vm.closed = true
	vm.mu.Unlock()
	if free {
		vm.host.lib.close(vm.h)
	}
}

// Destroy destroys the virtual machine, whatever it is doing, and closes the
// handle. A bhyve(8) that runs it ends with status 4. It is no error if the
// virtual machine is gone already.
func (vm *VM) Destroy() error {
	err := vm.host.Destroy(vm.name)
	vm.Close()
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}

// Destroy destroys the virtual machine of that name. ErrNotFound if there is
// none. The library does not say whether it succeeded, so this looks.
func (h *Host) Destroy(name string) error {
	const op = "destroy"
	// A handle of its own: destroy frees it, and others may be in use.
	vm, err := h.Open(name)
	if errors.Is(err, ErrGone) {
		return nil
	}
	if err != nil {
		return err
	}
	h.lib.destroy(vm.h)
	left, err := h.Open(name)
	if errors.Is(err, ErrNotFound) || errors.Is(err, ErrGone) {
		return nil
	}
	if err == nil {
		left.Close()
		err = &Error{Op: op, VM: name, Kind: ErrFailed, Advice: "it is still there; the reason is on standard error, where the library writes it"}
	}
	return err
}

// call runs f with the handle, keeps the handle for that long, and types its
// error.
func (vm *VM) call(op string, f func(h handle) error) error {
	vm.mu.Lock()
	if vm.closed {
		vm.mu.Unlock()
		return &Error{Op: op, VM: vm.name, Kind: ErrClosed}
	}
	vm.users++
	vm.mu.Unlock()
	defer func() {
		vm.mu.Lock()
		vm.users--
		free := vm.closed && vm.users == 0
		vm.mu.Unlock()
		if free {
			vm.host.lib.close(vm.h)
		}
	}()
	return newError(op, vm.name, repeat(func() error { return f(vm.h) }))
}

// Reinit takes the virtual machine back to its state after creation, with its
// memory. ErrBusy unless every active vCPU is suspended, which after a killed
// bhyve(8) they never are.
func (vm *VM) Reinit() error { return vm.call("reinit", vm.host.lib.reinit) }

// SuspendHow is how a virtual machine is made to stop.
type SuspendHow int

const (
	// SuspendReset is a reset: bhyve(8) ends with status 0.
	SuspendReset SuspendHow = iota + 1
	// SuspendPowerOff is a power-off: status 1.
	SuspendPowerOff
	// SuspendHalt is a halt: status 2.
	SuspendHalt
	// SuspendTripleFault is a triple fault: status 3.
	SuspendTripleFault
)

// Suspend makes all vCPUs leave the guest for good. It never waits. It is no
// error if the virtual machine is suspended already: the first reason stands.
func (vm *VM) Suspend(how SuspendHow) error {
	if how < SuspendReset || how > SuspendTripleFault {
		return invalid("suspend", vm.name, "no such way to suspend: %d", how)
	}
	err := vm.call("suspend", func(h handle) error { return vm.host.lib.suspend(h, how) })
	if errors.Is(err, syscall.EALREADY) {
		return nil
	}
	return err
}

// Topology is how vCPUs are presented to the guest.
type Topology struct {
	// Sockets, Cores per socket, Threads per core.
	Sockets, Cores, Threads uint16
	// MaxVCPUs is the most that this virtual machine may have. It is read only:
	// what is set must be 0.
	MaxVCPUs uint16
}

// SetTopology says how vCPUs are presented. bhyve(8) sets it again.
func (vm *VM) SetTopology(t Topology) error {
	if t.Sockets == 0 || t.Cores == 0 || t.Threads == 0 || t.MaxVCPUs != 0 {
		return invalid("set topology of", vm.name, "want sockets, cores and threads, and no limit, have %+v", t)
	}
	return vm.call("set topology of", func(h handle) error { return vm.host.lib.setTopology(h, t) })
}

// Topology reads it.
func (vm *VM) Topology() (t Topology, err error) {
	err = vm.call("read topology of", func(h handle) (err error) {
		t, err = vm.host.lib.topology(h)
		return err
	})
	return t, err
}

// SetClock sets the guest's real-time clock, to the second.
func (vm *VM) SetClock(t time.Time) error {
	return vm.call("set clock of", func(h handle) error { return vm.host.lib.setClock(h, t) })
}

// Clock reads the guest's real-time clock.
func (vm *VM) Clock() (t time.Time, err error) {
	err = vm.call("read clock of", func(h handle) (err error) {
		t, err = vm.host.lib.clock(h)
		return err
	})
	return t, err
}
