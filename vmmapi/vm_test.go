package vmmapi

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

func create(t *testing.T, h *Host, name string) *VM {
	t.Helper()
	vm, err := h.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(vm.Close)
	return vm
}

// TestNotLinked: without the library every way in says so.
func TestNotLinked(t *testing.T) {
	h := &Host{control: "/nonexistent", machines: "/nonexistent"}
	for name, call := range map[string]func() error{
		"create":     func() error { _, err := h.Create("a"); return err },
		"open":       func() error { _, err := h.Open("a"); return err },
		"destroy":    func() error { return h.Destroy("a") },
		"check":      h.Check,
		"max vcpus":  func() error { _, err := h.MaxVCPUs(); return err },
		"checkpoint": func() error { _, err := h.SupportsCheckpoint(); return err },
	} {
		err := call()
		if !errors.Is(err, ErrNotLinked) || !errdefs.IsNotImplemented(err) || !strings.Contains(err.Error(), "CGO_ENABLED=1") {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// TestErrors: what each errno means, what kind that is at an edge, and that
// the advice is there.
func TestErrors(t *testing.T) {
	for _, tc := range []struct {
		fn     string
		errno  syscall.Errno
		call   func(h *Host) error
		kind   error
		edge   func(error) bool
		advice string
	}{
		{"create", syscall.EACCES, createX, ErrNotPermitted, errdefs.IsPermissionDenied, "run as root"},
		{"create", syscall.EPERM, createX, ErrNotPermitted, errdefs.IsPermissionDenied, "allow.vmm"},
		{"create", syscall.EEXIST, createX, ErrExists, errdefs.IsAlreadyExists, "destroy it first"},
		{"create", syscall.ENOMEM, createX, ErrNoMemory, errdefs.IsResourceExhausted, ""},
		{"create", syscall.ENAMETOOLONG, createX, ErrInvalid, errdefs.IsInvalidArgument, ""},
		{"open", syscall.ENOENT, createX, ErrNotFound, errdefs.IsNotFound, ""},
		{"open", syscall.ENXIO, createX, ErrGone, errdefs.IsNotFound, "anew"},
		{"reinit", syscall.EBUSY, withVM((*VM).Reinit), ErrBusy, errdefs.IsFailedPrecondition, "killed"},
		{"setupMemory", syscall.EEXIST, withVM(setup64K), ErrMismatch, errdefs.IsFailedPrecondition, "same memory size"},
		{"setupMemory", syscall.ENOMEM, withVM(setup64K), ErrNoMemory, errdefs.IsResourceExhausted, "vm.max_user_wired"},
		{"clock", syscall.ENOTTY, withVM(func(vm *VM) error { _, err := vm.Clock(); return err }), ErrUnsupported, errdefs.IsNotImplemented, "BHYVE_SNAPSHOT"},
		{"setClock", syscall.EIO, withVM(func(vm *VM) error { return vm.SetClock(time.Unix(0, 0)) }), ErrFailed, errdefs.IsUnknown, ""},
	} {
		t.Run(tc.fn+" "+tc.errno.Error(), func(t *testing.T) {
			h, f := newFake(t)
			f.errs[tc.fn] = []error{tc.errno}
			err := tc.call(h)
			var e *Error
			if !errors.As(err, &e) || !errors.Is(err, tc.kind) || !tc.edge(err) || !errors.Is(err, tc.errno) {
				t.Fatalf("got %v, want %v", err, tc.kind)
			}
			if !strings.Contains(e.Advice, tc.advice) || !strings.Contains(err.Error(), tc.advice) {
				t.Errorf("got %q, want %q in it", err, tc.advice)
			}
		})
	}
}

func createX(h *Host) error { _, err := h.Create("x"); return err }

func setup64K(vm *VM) error { _, err := vm.SetupMemory(64<<10, true); return err }

func withVM(f func(*VM) error) func(*Host) error {
	return func(h *Host) error {
		vm, err := h.Create("x")
		if err != nil {
			return err
		}
		defer vm.Close()
		return f(vm)
	}
}

// TestMissing: ENOENT from the library is a missing machine, missing hardware
// or a missing module.
func TestMissing(t *testing.T) {
	h, _ := newFake(t)
	if _, err := h.Open("x"); !errors.Is(err, ErrNotFound) {
		t.Errorf("with the device: %v", err)
	}
	if err := os.Remove(h.control); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Open("x"); !errors.Is(err, ErrNoHardware) || !strings.Contains(err.Error(), "firmware") {
		t.Errorf("with the module only: %v", err)
	}
	h, f := newFake(t)
	_ = os.Remove(h.control)
	f.errs["maxVCPUs"] = []error{syscall.ENOENT, syscall.ENOENT}
	if _, err := h.Open("x"); !errors.Is(err, ErrNoModule) || !strings.Contains(err.Error(), "kldload vmm") {
		t.Errorf("without the module: %v", err)
	}
	if _, err := h.MaxVCPUs(); !errors.Is(err, ErrNoModule) {
		t.Errorf("number of vCPUs without the module: %v", err)
	}
}

// TestNames: the library aborts the process on a name that is too long, so
// none of these may reach it.
func TestNames(t *testing.T) {
	h, f := newFake(t)
	for _, name := range []string{"", ".", "..", ".x", "-x", "a/b", "a b", "a\x00b", "ä", strings.Repeat("x", MaxNameLength+1)} {
		for _, call := range []func() error{
			func() error { _, err := h.Create(name); return err },
			func() error { _, err := h.Open(name); return err },
			func() error { return h.Destroy(name) },
		} {
			if err := call(); !errdefs.IsInvalidArgument(err) {
				t.Errorf("%q: %v", name, err)
			}
		}
	}
	if len(f.calls) != 0 {
		t.Errorf("the library was called: %v", f.calls)
	}
	create(t, h, strings.Repeat("x", MaxNameLength))
}

// TestInterrupted: a call that a signal cut short is made again.
func TestInterrupted(t *testing.T) {
	h, f := newFake(t)
	f.errs["open"] = []error{syscall.EINTR, syscall.EINTR}
	vm := create(t, h, "x")
	f.errs["reinit"] = []error{syscall.EINTR, nil}
	if err := vm.Reinit(); err != nil {
		t.Errorf("interrupted once: %v", err)
	}
	f.errs["reinit"] = slices.Repeat([]error{syscall.EINTR}, interruptions)
	if err := vm.Reinit(); !errors.Is(err, syscall.EINTR) {
		t.Errorf("interrupted for ever: %v", err)
	}
}

// TestCloseDuringCall: the handle is freed by the last call that uses it, not
// under it; later calls do not reach the library.
func TestCloseDuringCall(t *testing.T) {
	h, f := newFake(t)
	vm := create(t, h, "x")
	f.duringCall["reinit"] = func() {
		vm.Close()
		vm.Close()
		if len(f.handles) != 1 {
			t.Error("the handle was freed under the call")
		}
	}
	if err := vm.Reinit(); err != nil {
		t.Fatal(err)
	}
	if len(f.handles) != 0 {
		t.Error("the handle was not freed after the call")
	}
	if err := vm.Reinit(); !errors.Is(err, ErrClosed) || !errdefs.IsFailedPrecondition(err) {
		t.Errorf("after Close: %v", err)
	}
	if err := vm.Destroy(); err != nil || len(f.machines) != 0 {
		t.Errorf("Destroy after Close: %v, %d machines left", err, len(f.machines))
	}
}

func TestDestroy(t *testing.T) {
	h, f := newFake(t)
	vm := create(t, h, "x")
	if err := vm.Destroy(); err != nil {
		t.Fatal(err)
	}
	if err := vm.Destroy(); err != nil {
		t.Errorf("again: %v", err)
	}
	if err := h.Destroy("x"); !errors.Is(err, ErrNotFound) {
		t.Errorf("by name: %v", err)
	}

	// The library says nothing of a failure.
	create(t, h, "y")
	f.noDestroy = true
	if err := h.Destroy("y"); !errors.Is(err, ErrFailed) || !strings.Contains(err.Error(), "still there") {
		t.Errorf("a machine that stays: %v", err)
	}
	f.errs["open"] = []error{syscall.ENXIO}
	if err := h.Destroy("y"); err != nil {
		t.Errorf("a machine that someone else destroys: %v", err)
	}
}

func TestSuspend(t *testing.T) {
	h, f := newFake(t)
	vm := create(t, h, "x")
	f.errs["suspend 2"] = []error{nil, syscall.EALREADY}
	for range 2 {
		if err := vm.Suspend(SuspendPowerOff); err != nil {
			t.Error(err)
		}
	}
	for _, how := range []SuspendHow{0, SuspendTripleFault + 1} {
		if err := vm.Suspend(how); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%d: %v", how, err)
		}
	}
}

func TestMemory(t *testing.T) {
	const size = 64 << 10
	h, f := newFake(t)
	vm := create(t, h, "x")
	for _, bad := range []uint64{0, pageSize - 1, maxMemory + pageSize} {
		if _, err := vm.SetupMemory(bad, false); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%#x bytes: %v", bad, err)
		}
	}
	m, err := vm.SetupMemory(size, false)
	if err != nil {
		t.Fatal(err)
	}
	if m.LowSize() != size || m.HighSize() != 0 {
		t.Errorf("%#x bytes low, %#x high", m.LowSize(), m.HighSize())
	}
	if n, err := m.WriteAt([]byte("hello"), size-5); n != 5 || err != nil {
		t.Errorf("write at the end: %d, %v", n, err)
	}
	p := make([]byte, 5)
	if n, err := m.ReadAt(p, size-5); n != 5 || err != nil || string(p) != "hello" {
		t.Errorf("read at the end: %d, %q, %v", n, p, err)
	}
	for _, gpa := range []int64{-1, size - 4, size, 1 << 62} {
		if n, err := m.WriteAt(p, gpa); n != 0 || !errdefs.IsInvalidArgument(err) {
			t.Errorf("write at %#x: %d, %v", gpa, n, err)
		}
	}

	// Memory that does not match must not reach vm_setup_memory.
	before := len(f.calls)
	if _, err := vm.SetupMemory(2*size, false); !errors.Is(err, ErrMismatch) {
		t.Errorf("another size: %v", err)
	}
	if slices.Contains(f.calls[before:], "setupMemory") {
		t.Error("the library was asked to map memory of another size")
	}
	if _, err := vm.SetupMemory(size, true); !errors.Is(err, ErrMismatch) {
		t.Errorf("another wiring: %v", err)
	}
}

func TestHostList(t *testing.T) {
	h, _ := newFake(t)
	if names, err := h.List(); err != nil || len(names) != 0 {
		t.Errorf("without the directory: %v, %v", names, err)
	}
	for _, n := range []string{"b", "a"} {
		if err := os.MkdirAll(filepath.Join(h.machines, n), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if names, err := h.List(); err != nil || !reflect.DeepEqual(names, []string{"a", "b"}) {
		t.Errorf("got %v, %v", names, err)
	}
}

func TestHostProbes(t *testing.T) {
	h, f := newFake(t)
	if n, err := h.MaxVCPUs(); n != fakeMaxVCPUs || err != nil {
		t.Errorf("%d vCPUs, %v", n, err)
	}
	if err := h.Check(); err != nil {
		t.Error(err)
	}
	for _, tc := range []struct {
		answer error
		want   bool
	}{{nil, true}, {syscall.ENOTTY, false}, {syscall.EINVAL, true}} {
		f.errs["restoreTime"] = []error{tc.answer}
		if got, err := h.SupportsCheckpoint(); got != tc.want || err != nil {
			t.Errorf("checkpoint support with %v: %t, %v", tc.answer, got, err)
		}
	}
	if len(f.machines) != 0 {
		t.Errorf("machines left over: %v", f.machines)
	}
	f.errs["create"] = []error{syscall.EPERM}
	if err := h.Check(); !errors.Is(err, ErrNotPermitted) {
		t.Errorf("in a jail: %v", err)
	}
}

// TestConcurrentUse is for the race detector, and for the fake, which fails on
// overlapping use of the static buffer and on a freed handle.
func TestConcurrentUse(t *testing.T) {
	h, f := newFake(t)
	var wg sync.WaitGroup
	for _, name := range []string{"x", "y", "z"} {
		vm := create(t, h, name)
		f.machines[name].active = []int{0}
		for range 4 {
			wg.Go(func() {
				c, err := vm.VCPU(0)
				if err == nil {
					_, err = c.Stats()
				}
				if err != nil && !errors.Is(err, ErrClosed) {
					t.Error(err)
				}
			})
		}
		wg.Go(vm.Close)
	}
	wg.Wait()
}
