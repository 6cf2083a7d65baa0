package vmmapi

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/containerd/errdefs"
)

// Kinds of failure, for errors.Is. Each is also one of errdefs' kinds, given
// here in brackets.
var (
	// ErrNotLinked: this program was built without libvmmapi [not implemented].
	ErrNotLinked = errors.New("libvmmapi is not linked in")
	// ErrNoModule: vmm(4) is not loaded [failed precondition].
	ErrNoModule = errors.New("the vmm kernel module is not loaded")
	// ErrNoHardware: vmm(4) is loaded and found nothing to work with [failed
	// precondition].
	ErrNoHardware = errors.New("the host has no usable hardware virtualization")
	// ErrNotPermitted: not root, or a jail without allow.vmm [permission
	// denied].
	ErrNotPermitted = errors.New("not permitted to use vmm")
	// ErrExists: the name is taken [already exists].
	ErrExists = errors.New("the virtual machine exists")
	// ErrNotFound: no virtual machine of that name is visible [not found].
	ErrNotFound = errors.New("no such virtual machine")
	// ErrGone: it is being destroyed [not found].
	ErrGone = errors.New("the virtual machine is being destroyed")
	// ErrMismatch: it has memory of another size or kind already [failed
	// precondition].
	ErrMismatch = errors.New("the virtual machine's memory is not what was asked for")
	// ErrBusy: vCPUs are active that are not suspended [failed precondition].
	ErrBusy = errors.New("the virtual machine has active vCPUs")
	// ErrNoMemory: the host gave no memory, or no more may be wired [resource
	// exhausted].
	ErrNoMemory = errors.New("not enough memory")
	// ErrUnsupported: the kernel was built without it [not implemented].
	ErrUnsupported = errors.New("not supported by this kernel")
	// ErrClosed: the handle was closed [failed precondition].
	ErrClosed = errors.New("the handle is closed")
	// ErrInvalid: an argument is wrong [invalid argument].
	ErrInvalid = errors.New("invalid argument")
	// ErrFailed is everything else [unknown].
	ErrFailed = errors.New("the call failed")
)

// edge maps the kinds to errdefs'.
var edge = map[error]error{
	ErrNotLinked: errdefs.ErrNotImplemented, ErrUnsupported: errdefs.ErrNotImplemented,
	ErrNoModule: errdefs.ErrFailedPrecondition, ErrNoHardware: errdefs.ErrFailedPrecondition,
	ErrMismatch: errdefs.ErrFailedPrecondition, ErrBusy: errdefs.ErrFailedPrecondition, ErrClosed: errdefs.ErrFailedPrecondition,
	ErrNotPermitted: errdefs.ErrPermissionDenied, ErrExists: errdefs.ErrAlreadyExists,
	ErrNotFound: errdefs.ErrNotFound, ErrGone: errdefs.ErrNotFound,
	ErrNoMemory: errdefs.ErrResourceExhausted, ErrInvalid: errdefs.ErrInvalidArgument, ErrFailed: errdefs.ErrUnknown,
}

// Error is a call that failed.
type Error struct {
	// Op is what was attempted.
	Op string
	// VM is the virtual machine's name, if it was about one.
	VM string
	// Kind is one of the errors above.
	Kind error
	// Advice says what to do about it. It may be empty.
	Advice string
	// Errno is what the library answered, 0 if it was not asked.
	Errno syscall.Errno
}

func (e *Error) Error() string {
	s := e.Op
	if e.VM != "" {
		s += " " + e.VM
	}
	s += ": " + e.Kind.Error()
	if e.Errno != 0 {
		s += fmt.Sprintf(" (%s)", e.Errno)
	}
	if e.Advice != "" {
		s += ": " + e.Advice
	}
	return s
}

// Unwrap gives the kind, its errdefs kind and the errno.
func (e *Error) Unwrap() []error {
	errs := []error{e.Kind, edge[e.Kind]}
	if e.Errno != 0 {
		errs = append(errs, e.Errno)
	}
	return errs
}

// Advice, by what is to be done.
const (
	adviceLink    = "build on FreeBSD 15 for amd64 with CGO_ENABLED=1"
	adviceModule  = `load it with "kldload vmm", and at every boot with vmm_load="YES" in /boot/loader.conf; a jail cannot load it`
	adviceNoHW    = "enable VT-x with EPT, or AMD-V with nested paging, in the firmware, or in the hypervisor that this host runs on; dmesg says what vmm missed"
	adviceRoot    = "run as root: /dev/vmmctl and /dev/vmm belong to it"
	adviceJail    = "set allow.vmm in the jail's configuration and unhide vmmctl, vmm and vmm.io in its devfs ruleset"
	adviceExists  = "open it, or destroy it first if it is a left-over"
	adviceBusy    = "its bhyve still runs, or was killed: it cannot be run again, destroy it and load a new one"
	adviceSize    = "the loader and bhyve must be given the same memory size and the same wiring; destroy it and begin again"
	adviceWired   = "wired guests count against vm.max_user_wired; raise it, or do not wire"
	adviceRestore = "build the kernel with options BHYVE_SNAPSHOT"
	adviceRetry   = "it has to be made anew"
)

// meaning is what an errno says in most calls. Calls where it says something
// else translate it themselves.
func meaning(e syscall.Errno) (advice string, kind error) {
	switch e {
	case syscall.ENXIO:
		return adviceRetry, ErrGone
	case syscall.EBUSY:
		return adviceBusy, ErrBusy
	case syscall.EACCES:
		return adviceRoot, ErrNotPermitted
	case syscall.EPERM:
		return adviceJail, ErrNotPermitted
	case syscall.EEXIST:
		return adviceExists, ErrExists
	case syscall.ENOENT:
		return "", ErrNotFound
	case syscall.ENOTTY:
		return adviceRestore, ErrUnsupported
	case syscall.ENOMEM, syscall.EFAULT:
		return "", ErrNoMemory
	case syscall.EINVAL, syscall.ENAMETOOLONG, syscall.ERANGE:
		return "", ErrInvalid
	}
	return "", ErrFailed
}

// newError types what a library function answered; nil for no error.
func newError(op, vm string, err error) error {
	if err == nil {
		return nil
	}
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return fmt.Errorf("%s %s: %w", op, vm, err)
	}
	advice, kind := meaning(errno)
	return &Error{Op: op, VM: vm, Kind: kind, Advice: advice, Errno: errno}
}

func invalid(op, vm, format string, args ...any) error {
	return &Error{Op: op, VM: vm, Kind: ErrInvalid, Advice: fmt.Sprintf(format, args...)}
}

// interruptions bounds how often a call is repeated that a signal cut short.
// The Go runtime sends itself signals.
const interruptions = 100

// repeat calls f until it is not interrupted.
func repeat(f func() error) error {
	var err error
	for range interruptions {
		if err = f(); !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
	return err
}
