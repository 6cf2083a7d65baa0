package vmmapi

import (
	"errors"
	"fmt"
	"io"
	"syscall"
	"unsafe"
)

const (
	pageSize = 4 << 10
	// maxMemory keeps sums of addresses far from overflow, and above any host.
	maxMemory = 1 << 46
)

// Memory is a virtual machine's memory, mapped into this process. It stays
// mapped until the process ends, and for that long none of it is given back to
// the host. It implements io.ReaderAt and io.WriterAt by guest physical
// address, and linuxboot.GuestMemory.
type Memory struct {
	vm        *VM
	low, high uint64
}

var (
	_ io.ReaderAt = (*Memory)(nil)
	_ io.WriterAt = (*Memory)(nil)
)

// SetupMemory gives the virtual machine size bytes of memory, if it has none,
// and maps it: up to 3 GiB from address 0, the rest from 4 GiB. ErrMismatch if
// it has memory already of another size, or wired otherwise.
//
// bhyve(8) must be started with the same size and wiring.
func (vm *VM) SetupMemory(size uint64, wired bool) (*Memory, error) {
	const op = "set up memory of"
	if size == 0 || size%pageSize != 0 || size > maxMemory {
		return nil, invalid(op, vm.name, "%#x bytes: want whole pages", size)
	}
	lib := vm.host.lib
	m := &Memory{vm: vm}
	err := vm.call(op, func(h handle) error {
		// With memory of another size the library goes on with that size, in the
		// address space that it has reserved for ours.
		if have, err := lib.systemMemory(h); err == nil && have != 0 && have != size {
			return syscall.EEXIST
		}
		if err := lib.setupMemory(h, size, wired); err != nil {
			return err
		}
		m.low, m.high = lib.memorySizes(h)
		return nil
	})
	var e *Error
	if errors.As(err, &e) {
		switch e.Errno {
		case syscall.EEXIST:
			e.Kind, e.Advice = ErrMismatch, adviceSize
		case syscall.ENOMEM, syscall.EFAULT:
			if wired {
				e.Advice = adviceWired
			}
		}
		return nil, e
	}
	if err != nil {
		return nil, err
	}
	return m, nil
}

// LowSize is the bytes of memory from address 0.
func (m *Memory) LowSize() uint64 { return m.low }

// HighSize is the bytes of memory from address 4 GiB.
func (m *Memory) HighSize() uint64 { return m.high }

// Bytes is the guest's memory itself, n bytes at gpa. The range must not
// reach out of low or of high memory.
func (m *Memory) Bytes(gpa, n uint64) (p []byte, err error) {
	const op = "map memory of"
	if n == 0 {
		return nil, nil
	}
	if gpa > maxMemory || n > maxMemory {
		return nil, invalid(op, m.vm.name, "%#x bytes at %#x", n, gpa)
	}
	err = m.vm.call(op, func(h handle) error {
		at := m.vm.host.lib.mapGPA(h, gpa, n)
		if at == nil {
			return syscall.EINVAL
		}
		p = unsafe.Slice((*byte)(at), n)
		return nil
	})
	var e *Error
	if errors.As(err, &e) && e.Errno == syscall.EINVAL {
		e.Advice = fmt.Sprintf("%#x bytes at %#x are not all memory of the guest", n, gpa)
	}
	return p, err
}

// WriteAt writes p at the guest physical address gpa. It writes all or
// nothing.
func (m *Memory) WriteAt(p []byte, gpa int64) (int, error) {
	b, err := m.at(p, gpa)
	if err != nil {
		return 0, err
	}
	return copy(b, p), nil
}

// ReadAt reads len(p) bytes at the guest physical address gpa. It reads all or
// nothing.
func (m *Memory) ReadAt(p []byte, gpa int64) (int, error) {
	b, err := m.at(p, gpa)
	if err != nil {
		return 0, err
	}
	return copy(p, b), nil
}

func (m *Memory) at(p []byte, gpa int64) ([]byte, error) {
	if gpa < 0 {
		return nil, invalid("map memory of", m.vm.name, "address %d", gpa)
	}
	return m.Bytes(uint64(gpa), uint64(len(p)))
}
