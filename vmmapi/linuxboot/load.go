package linuxboot

import (
	"fmt"
	"io"
	"strings"

	"github.com/containerd/errdefs"
)

// Fixed addresses below 640 KiB: see the package's documentation.
const (
	gdtAddr        = 0x1000
	bootParamsAddr = 0x7000
	stackAddr      = 0x8000
	stackTop       = 0x9000
	pageTablesAddr = 0x9000
	cmdlineAddr    = 0x20000
)

// Config is what to boot.
type Config struct {
	// Kernel is a bzImage or an x86-64 vmlinux.
	Kernel *io.SectionReader
	// Initrd is the initramfs, nil for none.
	Initrd *io.SectionReader
	// Cmdline is the kernel's command line.
	Cmdline string
	// RSDP is the guest physical address of the ACPI root pointer, if it is
	// known. With 0 the kernel looks for it where firmware would have put it.
	// It must not be set for a guest that gets no ACPI tables.
	RSDP uint64
}

// Loaded is a guest that is ready to run.
type Loaded struct {
	// Format is what the kernel file was.
	Format Format
	// CPU is the state in which vCPU 0 has to be started.
	CPU CPU
	// Regions is what was placed where, in the order in which it was placed.
	Regions []Region
}

// Load checks the kernel, finds a place for everything, and only then writes
// to mem. Errors in the files are *FormatError, in their size *PlacementError,
// in the rest of cfg errdefs.ErrInvalidArgument; others come from reading the
// files or writing to mem, whose content is then undefined.
func Load(mem GuestMemory, cfg Config) (*Loaded, error) {
	if cfg.Kernel == nil {
		return nil, fmt.Errorf("no kernel: %w", errdefs.ErrInvalidArgument)
	}
	l, err := newLayout(mem)
	if err != nil {
		return nil, err
	}
	k, err := parseKernel(cfg.Kernel)
	if err != nil {
		return nil, err
	}
	if err := checkCmdline(cfg.Cmdline, k); err != nil {
		return nil, err
	}
	cpu := startState(k.entry)
	tables := pageTables(pageTablesAddr)

	for _, fixed := range []struct {
		name        string
		start, size uint64
	}{
		{"GDT", gdtAddr, gdtEntries * 8},
		{"boot_params", bootParamsAddr, bootParamsSize},
		{"stack", stackAddr, stackTop - stackAddr},
		{"page tables", pageTablesAddr, uint64(len(tables))},
	} {
		if _, err := l.place(fixed.name, fixed.start, fixed.size); err != nil {
			return nil, err
		}
	}
	cmdline, err := l.place("command line", cmdlineAddr, uint64(len(cfg.Cmdline))+1)
	if err != nil {
		return nil, err
	}
	for _, s := range k.segments {
		if _, err := l.place(s.name, s.addr, s.size); err != nil {
			return nil, err
		}
	}
	var initrd Region
	if cfg.Initrd != nil && cfg.Initrd.Size() > 0 {
		if initrd, err = l.placeHigh("initramfs", uint64(cfg.Initrd.Size()), k.initrdMax); err != nil {
			return nil, err
		}
	}

	w := writer{mem: mem}
	for _, s := range k.segments {
		w.copy(s.name, s.addr, io.NewSectionReader(cfg.Kernel, s.fileOff, int64(s.fileSize)))
		w.zero(s.name, s.addr+s.fileSize, s.zeroes)
	}
	if initrd.Start != 0 {
		w.copy(initrd.Name, initrd.Start, io.NewSectionReader(cfg.Initrd, 0, cfg.Initrd.Size()))
	}
	w.write("command line", cmdline.Start, append([]byte(cfg.Cmdline), 0))
	w.write("boot_params", bootParamsAddr, bootParams(k, l, cmdline, initrd, cfg.RSDP))
	w.write("page tables", pageTablesAddr, tables)
	w.write("GDT", gdtAddr, gdt(cpu))
	if w.err != nil {
		return nil, w.err
	}
	return &Loaded{Format: k.format, CPU: cpu, Regions: l.placed}, nil
}

func checkCmdline(s string, k *kernel) error {
	if strings.IndexByte(s, 0) >= 0 {
		return fmt.Errorf("kernel command line has a NUL byte: %w", errdefs.ErrInvalidArgument)
	}
	if uint64(len(s)) > k.cmdlineMax {
		return fmt.Errorf("kernel command line has %d bytes, this kernel takes %d: %w", len(s), k.cmdlineMax, errdefs.ErrInvalidArgument)
	}
	return nil
}

// writer writes to guest memory until the first error.
type writer struct {
	mem GuestMemory
	buf []byte
	err error
}

// copyBuffer is large enough that a copy runs at the speed of memory.
const copyBuffer = 1 << 20

func (w *writer) buffer() []byte {
	if w.buf == nil {
		w.buf = make([]byte, copyBuffer)
	}
	return w.buf
}

func (w *writer) write(what string, addr uint64, p []byte) {
	if w.err != nil {
		return
	}
	if _, err := w.mem.WriteAt(p, int64(addr)); err != nil {
		w.err = fmt.Errorf("write %s to guest memory at %#x: %w", what, addr, err)
	}
}

// copy writes all of src, which must not have become shorter meanwhile.
func (w *writer) copy(what string, addr uint64, src *io.SectionReader) {
	if w.err != nil {
		return
	}
	n, err := io.CopyBuffer(io.NewOffsetWriter(w.mem, int64(addr)), src, w.buffer())
	if err == nil && n != src.Size() {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		w.err = fmt.Errorf("copy %s to guest memory at %#x: %w", what, addr, err)
	}
}

func (w *writer) zero(what string, addr, size uint64) {
	zeroes := w.buffer()
	clear(zeroes)
	for size > 0 && w.err == nil {
		n := min(size, uint64(len(zeroes)))
		w.write(what, addr, zeroes[:n])
		addr, size = addr+n, size-n
	}
}
