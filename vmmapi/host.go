package vmmapi

import (
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"slices"
	"syscall"
)

// Host is vmm(4) on this host. The zero value is not usable: see ThisHost.
type Host struct {
	lib library
	// control is the device through which VMs are made; machines is the
	// directory of those that exist.
	control, machines string
}

// ThisHost is the host that this program runs on. It does not touch it.
func ThisHost() *Host {
	return &Host{lib: native, control: "/dev/vmmctl", machines: "/dev/vmm"}
}

// linked returns ErrNotLinked where there is no library.
func (h *Host) linked(op, vm string) error {
	if h.lib == nil {
		return &Error{Op: op, VM: vm, Kind: ErrNotLinked, Advice: adviceLink}
	}
	return nil
}

// List returns the names of the virtual machines that exist and are visible to
// this process, sorted. vmm(4) removes the directory with the last of them, so
// a host without any, or without vmm, has an empty list.
func (h *Host) List() ([]string, error) {
	entries, err := os.ReadDir(h.machines)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		names = append(names, e.Name())
	}
	slices.Sort(names)
	return names, nil
}

// MaxVCPUs is the most vCPUs that a virtual machine may have (the loader
// tunable hw.vmm.maxcpu, by default the host's CPUs). ErrNoModule where vmm(4)
// is not loaded.
func (h *Host) MaxVCPUs() (int, error) {
	const op = "read hw.vmm.maxcpu"
	if err := h.linked(op, ""); err != nil {
		return 0, err
	}
	n, err := h.lib.maxVCPUs()
	if errors.Is(err, syscall.ENOENT) {
		return 0, &Error{Op: op, Kind: ErrNoModule, Advice: adviceModule, Errno: syscall.ENOENT}
	}
	return n, newError(op, "", err)
}

// Check returns nil if virtual machines can be made here, else why not. It
// makes one, and destroys it again: permissions of a jail show only then.
func (h *Host) Check() error {
	return h.probe("check vmm", func(*VM) error { return nil })
}

// SupportsCheckpoint says whether the kernel can save and restore virtual
// machines (options BHYVE_SNAPSHOT, which GENERIC lacks). It makes a virtual
// machine to ask, and destroys it again. Userland has to be built for it, too:
// whether bhyve(8) knows -r is not asked here.
func (h *Host) SupportsCheckpoint() (bool, error) {
	supported := false
	err := h.probe("probe checkpoint support", func(vm *VM) error {
		err := vm.call("restore time of", h.lib.restoreTime)
		if errors.Is(err, ErrUnsupported) {
			return nil
		}
		// Any other answer comes from code that GENERIC does not have.
		supported = err == nil || !errors.Is(err, ErrGone)
		return nil
	})
	return supported, err
}

// probe calls f with a virtual machine that nobody else knows.
func (h *Host) probe(op string, f func(*VM) error) (err error) {
	if err := h.linked(op, ""); err != nil {
		return err
	}
	vm, err := h.Create("vmmapi-probe-" + rand.Text()[:8])
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, vm.Destroy()) }()
	return f(vm)
}

// openError says what ENOENT means when a virtual machine is made or opened:
// the library answers it for a missing module, missing hardware and a missing
// machine alike.
func (h *Host) openError(op, name string, err error) error {
	if !errors.Is(err, syscall.ENOENT) {
		return newError(op, name, err)
	}
	if _, serr := os.Stat(h.control); serr == nil {
		return newError(op, name, err)
	}
	e := &Error{Op: op, VM: name, Kind: ErrNoHardware, Advice: adviceNoHW, Errno: syscall.ENOENT}
	// The module's sysctls are there even if its devices could not be made.
	if _, merr := h.lib.maxVCPUs(); errors.Is(merr, syscall.ENOENT) {
		e.Kind, e.Advice = ErrNoModule, adviceModule
	}
	return e
}
