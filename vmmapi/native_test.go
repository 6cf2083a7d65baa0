//go:build vmmapi_standin

package vmmapi

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// These tests run over the cgo bridge and the stand-in for the library.

func nativeHost(t *testing.T) *Host {
	t.Helper()
	h := ThisHost()
	h.control = filepath.Join(t.TempDir(), "vmmctl")
	if err := os.WriteFile(h.control, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return h
}

func nativeVM(t *testing.T) *VM {
	t.Helper()
	vm, err := nativeHost(t).Create(strings.ReplaceAll(t.Name(), "/", "-"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := vm.Destroy(); err != nil {
			t.Error(err)
		}
	})
	return vm
}

func TestNativeErrno(t *testing.T) {
	h := nativeHost(t)
	for _, errno := range []syscall.Errno{syscall.EPERM, syscall.EACCES, syscall.ENOMEM, syscall.EINVAL} {
		if _, err := h.Create(fmt.Sprintf("errno-%d", errno)); !errors.Is(err, errno) {
			t.Errorf("got %v, want %v", err, errno)
		}
	}
	if _, err := h.Open("nothing"); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
}

func TestNativeLife(t *testing.T) {
	vm := nativeVM(t)
	if _, err := vm.host.Create(vm.Name()); !errors.Is(err, ErrExists) {
		t.Errorf("create again: %v", err)
	}
	if err := vm.Reinit(); !errors.Is(err, ErrBusy) {
		t.Errorf("reinit: %v", err)
	}
	for range 2 {
		if err := vm.Suspend(SuspendPowerOff); err != nil {
			t.Error(err)
		}
	}
	if err := vm.Reinit(); err != nil {
		t.Error(err)
	}
	if n, err := vm.host.MaxVCPUs(); n != 4 || err != nil {
		t.Errorf("%d vCPUs, %v", n, err)
	}
	if ok, err := vm.host.SupportsCheckpoint(); ok || err != nil {
		t.Errorf("checkpoint: %t, %v", ok, err)
	}
	now := time.Unix(1712345678, 0)
	if err := vm.SetClock(now); err != nil {
		t.Error(err)
	}
	if got, err := vm.Clock(); !got.Equal(now) || err != nil {
		t.Errorf("clock %v, %v", got, err)
	}
	if err := vm.SetTopology(Topology{Sockets: 1, Cores: 2, Threads: 3}); err != nil {
		t.Error(err)
	}
	if got, err := vm.Topology(); got != (Topology{1, 2, 3, 4}) || err != nil {
		t.Errorf("topology %v, %v", got, err)
	}
}

// TestNativeSuspend reads back, through the clock, which way to suspend arrived
// (the stand-in's numbers, in its machine/vmm.h).
func TestNativeSuspend(t *testing.T) {
	for how, want := range map[SuspendHow]int64{
		SuspendTripleFault: 101, SuspendHalt: 102, SuspendPowerOff: 103, SuspendReset: 104,
	} {
		t.Run(fmt.Sprint(int(how)), func(t *testing.T) {
			vm := nativeVM(t)
			if err := vm.Suspend(how); err != nil {
				t.Fatal(err)
			}
			if got, err := vm.Clock(); err != nil || got.Unix() != want {
				t.Errorf("got %d, %v, want %d", got.Unix(), err, want)
			}
		})
	}
}

func TestNativeMemory(t *testing.T) {
	vm := nativeVM(t)
	const size = 1 << 20
	m, err := vm.SetupMemory(size, true)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.WriteAt([]byte("end"), size-3); err != nil {
		t.Error(err)
	}
	// What another process would see.
	other, err := vm.host.Open(vm.Name())
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if _, err := other.SetupMemory(size, false); !errors.Is(err, ErrMismatch) {
		t.Errorf("wired otherwise: %v", err)
	}
	if _, err := other.SetupMemory(2*size, true); !errors.Is(err, ErrMismatch) {
		t.Errorf("another size: %v", err)
	}
	again, err := other.SetupMemory(size, true)
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 3)
	if _, err := again.ReadAt(p, size-3); err != nil || string(p) != "end" {
		t.Errorf("read %q, %v", p, err)
	}
	if _, err := m.WriteAt(p, size-2); !errors.Is(err, ErrInvalid) {
		t.Errorf("write over the end: %v", err)
	}
}

func TestNativeVCPU(t *testing.T) {
	vm := nativeVM(t)
	var vcpus []*VCPU
	for id := range 4 {
		c, err := vm.VCPU(id)
		if err != nil {
			t.Fatal(err)
		}
		vcpus = append(vcpus, c)
		for r := RAX; r <= IDTR; r++ {
			v := uint64(id)<<60 | uint64(r)<<32 | 0x89abcdef
			if r.hasValue() {
				err = errors.Join(err, c.SetRegister(r, v))
			}
			if r.hasDescriptor() {
				err = errors.Join(err, c.SetDescriptor(r, Descriptor{v, uint32(r) << 8, uint32(id) + 1}))
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for id, c := range vcpus {
		for r := RAX; r <= IDTR; r++ {
			v := uint64(id)<<60 | uint64(r)<<32 | 0x89abcdef
			if r.hasValue() {
				if got, err := c.Register(r); got != v || err != nil {
					t.Errorf("vCPU %d %s: %#x, %v, want %#x", id, r, got, err, v)
				}
			}
			if r.hasDescriptor() {
				if got, err := c.Descriptor(r); got != (Descriptor{v, uint32(r) << 8, uint32(id) + 1}) || err != nil {
					t.Errorf("vCPU %d %s: %v, %v", id, r, got, err)
				}
			}
		}
	}
	if err := vcpus[1].SetCapability(ExitOnPause, true); err != nil {
		t.Error(err)
	}
	for k, want := range map[Capability]bool{ExitOnPause: true, ExitOnHLT: false, UnrestrictedGuest: false} {
		if got, err := vcpus[1].Capability(k); got != want || err != nil {
			t.Errorf("capability %d: %t, %v", k, got, err)
		}
	}
	// The errno is the function's, not that of closing the vCPU after it.
	if _, err := vcpus[1].Capability(EnableINVPCID); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("a capability that is missing: %v", err)
	}
	if err := vcpus[2].Reset(); err != nil {
		t.Error(err)
	}
	if v, err := vcpus[2].Register(RIP); v != 0xfff0 || err != nil {
		t.Errorf("RIP after reset: %#x, %v", v, err)
	}
	if ids, err := vm.ActiveVCPUs(); !reflect.DeepEqual(ids, []int{0, 1, 2, 3}) || err != nil {
		t.Errorf("active: %v, %v", ids, err)
	}
	if ids, err := vm.SuspendedVCPUs(); !reflect.DeepEqual(ids, []int{1023}) || err != nil {
		t.Errorf("suspended: %v, %v", ids, err)
	}
	if _, err := vm.DebugVCPUs(); !errors.Is(err, syscall.ERANGE) {
		t.Errorf("held: %v", err)
	}
}

// TestNativeStats reads statistics from many threads at once: what comes from
// the thread-local and the static buffer must not be another's.
func TestNativeStats(t *testing.T) {
	vm := nativeVM(t)
	var wg sync.WaitGroup
	for g := range 16 {
		wg.Go(func() {
			for range 200 {
				// A handle each, so that each reads the names anew.
				own, err := vm.host.Open(vm.Name())
				if err != nil {
					t.Error(err)
					return
				}
				c, err := own.VCPU(g % 4)
				if err != nil {
					t.Error(err)
					return
				}
				s, err := c.Stats()
				own.Close()
				if err != nil || len(s.Values) != 5 || !s.At.Equal(time.Unix(1700000000, 250e6)) {
					t.Errorf("%v, %v", s, err)
					return
				}
				for i := range 5 {
					if got, want := s.Values[fmt.Sprintf("statistic %d", i)], uint64(1000*c.ID()+i); got != want {
						t.Errorf("vCPU %d, statistic %d: %d, want %d", c.ID(), i, got, want)
						return
					}
				}
			}
		})
	}
	wg.Wait()
}
