package linuxboot

import (
	"fmt"
	"io"

	"github.com/containerd/errdefs"
)

// GuestMemory is a guest's physical memory, addressed by guest physical
// address. It is in at most two pieces: low memory from address 0, and high
// memory from HighBase. WriteAt is only asked for ranges within one piece, and
// must write the whole of p or return an error.
type GuestMemory interface {
	io.WriterAt
	// LowSize is the bytes of low memory: a multiple of the page size, at most
	// LowLimit.
	LowSize() uint64
	// HighSize is the bytes of high memory, 0 where there is none.
	HighSize() uint64
}

const (
	// LowLimit is where low memory ends at the latest; from there to HighBase
	// are devices (VM_LOWMEM_LIMIT, lib/libvmmapi/vmmapi.c).
	LowLimit = 3 << 30
	// HighBase is the address of high memory (VM_HIGHMEM_BASE, ibid.).
	HighBase = 4 << 30

	pageSize = 4 << 10
)

// Split says how size bytes of memory are divided into low and high memory.
func Split(size uint64) (low, high uint64) {
	low = min(size, LowLimit)
	return low, size - low
}

// Memory that is not the loader's to use, and why.
const (
	// lowEnd is where conventional memory ends: the extended BIOS data area is
	// at the top of the first 640 KiB, and kernels look for tables in its first
	// KiB, so it is reported as reserved.
	lowEnd    = 0x9fc00
	ebdaEnd   = 0xa0000
	tablesLow = 0xe0000 // bhyve's tables are from 0xF0000; kernels scan from here
	oneMiB    = 0x100000

	// bhyve's PCI express configuration window (B/pci_emul.c, PCI_EMUL_ECFG_*).
	// A kernel uses it only where the memory map says that it is reserved.
	ecfgBase = 0xe0000000
	ecfgEnd  = 0xf0000000
)

// Region is a range of guest physical addresses that something occupies.
type Region struct {
	// What is in it, for errors and logs.
	Name string
	// Start is the first address, End the first one after it.
	Start, End uint64
}

func (r Region) String() string { return fmt.Sprintf("%s at %#x-%#x", r.Name, r.Start, r.End) }

// layout is the guest's memory with what has been placed in it so far.
type layout struct {
	low, high uint64
	placed    []Region
}

// minLow is the least low memory that is accepted. Far less than any kernel
// needs; it guarantees that the fixed addresses exist.
const minLow = 2 << 20

func newLayout(mem GuestMemory) (*layout, error) {
	l := &layout{low: mem.LowSize(), high: mem.HighSize()}
	switch {
	case l.low < minLow, l.low > LowLimit, l.low%pageSize != 0:
		return nil, fmt.Errorf("%#x bytes of low memory: want whole pages, %#x to %#x: %w", l.low, uint64(minLow), uint64(LowLimit), errdefs.ErrInvalidArgument)
	case l.high%pageSize != 0, l.high > maxHigh:
		return nil, fmt.Errorf("%#x bytes of high memory: want whole pages, at most %#x: %w", l.high, uint64(maxHigh), errdefs.ErrInvalidArgument)
	}
	return l, nil
}

// maxHigh keeps sums of addresses far from overflow: 2^46 bytes is the
// physical address space of 4-level paging.
const maxHigh = 1 << 46

// place reserves size bytes at start in low memory that is the loader's to
// use. Nothing is placed in high memory.
func (l *layout) place(name string, start, size uint64) (Region, error) {
	r := Region{Name: name, Start: start, End: start + size}
	if r.End < r.Start {
		r.End = ^uint64(0)
		return r, &PlacementError{r, "its end is beyond the address space"}
	}
	conventional := r.End <= lowEnd
	extended := r.Start >= oneMiB && r.End <= l.low
	if !conventional && !extended {
		return r, &PlacementError{r, fmt.Sprintf("usable memory is 0-%#x and %#x-%#x: the guest needs more memory, or the kernel another address", uint64(lowEnd), uint64(oneMiB), l.low)}
	}
	for _, p := range l.placed {
		if r.Start < p.End && p.Start < r.End {
			return r, &PlacementError{r, "it lies over " + p.String()}
		}
	}
	if size > 0 {
		l.placed = append(l.placed, r)
	}
	return r, nil
}

// placeHigh reserves size bytes, page-aligned, as high as possible with their
// end at most limit.
func (l *layout) placeHigh(name string, size, limit uint64) (Region, error) {
	limit = min(limit, l.low)
	for {
		if limit < size {
			return Region{}, &PlacementError{Region{Name: name, End: size}, fmt.Sprintf("%d bytes do not fit below the kernel's limit or the end of low memory at %#x", size, l.low)}
		}
		start := (limit - size) &^ (pageSize - 1)
		if start < oneMiB {
			return Region{}, &PlacementError{Region{name, start, start + size}, "no room above 1 MiB beside the kernel"}
		}
		r := Region{name, start, start + size}
		below, clash := uint64(0), false
		for _, p := range l.placed {
			if r.Start < p.End && p.Start < r.End && (!clash || p.Start < below) {
				below, clash = p.Start, true
			}
		}
		if !clash {
			return l.place(name, start, size)
		}
		limit = below
	}
}
