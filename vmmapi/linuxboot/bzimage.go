package linuxboot

import (
	"errors"
	"fmt"
	"io"
)

// Offsets of the real-mode kernel header's fields, from the beginning of the
// file and of boot_params alike (boot.rst, "The Real-Mode Kernel Header").
const (
	hdrSetupSects      = 0x1f1 // u8: sectors of real-mode code, 0 means 4
	hdrSyssize         = 0x1f4 // u32: size of the protected-mode code in 16-byte units
	hdrBootFlag        = 0x1fe // u16: 0xAA55
	hdrJump            = 0x200 // u16: a jump; its second byte gives the header's end
	hdrMagic           = 0x202 // u32: "HdrS"
	hdrVersion         = 0x206 // u16: boot protocol version
	hdrTypeOfLoader    = 0x210 // u8: written by us
	hdrLoadflags       = 0x211 // u8
	hdrCode32Start     = 0x214 // u32: written by us
	hdrRamdiskImage    = 0x218 // u32: written by us
	hdrRamdiskSize     = 0x21c // u32: written by us
	hdrCmdLinePtr      = 0x228 // u32: written by us
	hdrInitrdAddrMax   = 0x22c // u32: highest address of the initramfs
	hdrKernelAlignment = 0x230 // u32: alignment that a relocatable kernel needs
	hdrXloadflags      = 0x236 // u16
	hdrCmdlineSize     = 0x238 // u32: most bytes of command line, without the NUL
	hdrPrefAddress     = 0x258 // u64: where the kernel wants to be
	hdrInitSize        = 0x260 // u32: memory needed from the runtime start address

	// setupHeader is where the part that is copied into boot_params begins.
	setupHeader = hdrSetupSects
	// setupHeaderMin is the end of init_size, the last field that is used.
	setupHeaderMin = hdrInitSize + 4
	// setupHeaderMax is where boot_params' next field, edd_mbr_sig_buffer,
	// begins (Documentation/arch/x86/zero-page.rst).
	setupHeaderMax = 0x290
)

// Values of the header's fields (boot.rst, "Details of Header Fields").
const (
	bootFlag        = 0xaa55
	headerMagic     = "HdrS"
	minVersion      = 0x020c // 2.12 brought xloadflags
	loadedHigh      = 1 << 0 // loadflags: protected-mode code is loaded at or above 1 MiB
	xlfKernel64     = 1 << 0 // xloadflags: has the 64-bit entry point
	loaderUndefined = 0xff   // type_of_loader without an assigned number
	sectorSize      = 512
	defaultSects    = 4
	paragraph       = 16
	entry64         = 0x200 // the 64-bit entry point, from the load address (boot.rst, "64-bit Boot Protocol")
)

func parseBzImage(f *io.SectionReader) (*kernel, error) {
	bad := func(field, format string, args ...any) error {
		return &FormatError{BzImage, field, fmt.Sprintf(format, args...)}
	}
	head := make([]byte, setupHeaderMax)
	n, err := f.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read kernel header: %w", err)
	}
	if n < setupHeaderMin {
		return nil, bad("header", "the file has only %d bytes", n)
	}
	u16 := func(off int) uint16 { return le.Uint16(head[off:]) }
	u32 := func(off int) uint64 { return uint64(le.Uint32(head[off:])) }
	u64 := func(off int) uint64 { return le.Uint64(head[off:]) }

	if v := u16(hdrBootFlag); v != bootFlag {
		return nil, bad("boot_flag", "%#04x, want %#04x: not a Linux kernel for x86", v, bootFlag)
	}
	if v := head[hdrMagic : hdrMagic+4]; string(v) != headerMagic {
		return nil, bad("header", "%q, want %q: not a Linux kernel for x86", v, headerMagic)
	}
	if v := u16(hdrVersion); v < minVersion {
		return nil, bad("version", "boot protocol %d.%d, want at least 2.12: the kernel is too old", v>>8, v&0xff)
	}
	// boot.rst, "64-bit Boot Protocol": the header's end is 0x202 plus the byte
	// at 0x201.
	end := hdrMagic + int(head[hdrJump+1])
	if end < setupHeaderMin || end > setupHeaderMax || end > n {
		return nil, bad("jump", "the header ends at %#x, want %#x to %#x and inside the file", end, setupHeaderMin, setupHeaderMax)
	}
	if head[hdrLoadflags]&loadedHigh == 0 {
		return nil, bad("loadflags", "%#02x without LOADED_HIGH: a zImage", head[hdrLoadflags])
	}
	if v := u16(hdrXloadflags); v&xlfKernel64 == 0 {
		return nil, bad("xloadflags", "%#04x without XLF_KERNEL_64: a 32-bit kernel", v)
	}
	align := u32(hdrKernelAlignment)
	if align < pageSize || align&(align-1) != 0 {
		return nil, bad("kernel_alignment", "%#x, want a power of two of at least a page", align)
	}
	load := u64(hdrPrefAddress)
	if load < oneMiB || load >= LowLimit {
		return nil, bad("pref_address", "%#x, want %#x to %#x", load, oneMiB, uint64(LowLimit))
	}
	initrdMax := u32(hdrInitrdAddrMax)
	if initrdMax < oneMiB {
		return nil, bad("initrd_addr_max", "%#x, below 1 MiB", initrdMax)
	}

	sects := uint64(head[hdrSetupSects])
	if sects == 0 {
		sects = defaultSects
	}
	off := (sects + 1) * sectorSize
	// The size may be counted up to whole paragraphs beyond the file's end. What
	// follows in the file, as a signature does, is not part of the kernel.
	size := u32(hdrSyssize) * paragraph
	if size <= entry64 {
		return nil, bad("syssize", "%d bytes of kernel, too few to hold the entry point", size)
	}
	if have := uint64(f.Size()); have < off || have-off+paragraph <= size {
		return nil, bad("syssize", "the kernel is %d bytes from offset %d, the file has %d: truncated", size, off, have)
	}
	fileSize := min(size, uint64(f.Size())-off)

	// boot.rst, init_size: the memory that is needed begins at the runtime start
	// address: the load address, aligned.
	initSize := u32(hdrInitSize)
	start := (load + align - 1) &^ (align - 1)
	if initSize < fileSize {
		return nil, bad("init_size", "%#x, less than the %#x bytes of the kernel", initSize, fileSize)
	}
	return &kernel{
		format: BzImage,
		segments: []segment{{
			name: "kernel", addr: load, size: start + initSize - load,
			fileOff: int64(off), fileSize: fileSize,
		}},
		entry:      load + entry64,
		header:     head[setupHeader:end],
		cmdlineMax: u32(hdrCmdlineSize),
		initrdMax:  initrdMax + 1,
	}, nil
}
