package linuxboot

// Offsets in boot_params outside of the setup header
// (Documentation/arch/x86/zero-page.rst).
const (
	bpACPIRSDPAddr    = 0x070 // u64
	bpExtRamdiskImage = 0x0c0 // u32: upper half of ramdisk_image
	bpExtRamdiskSize  = 0x0c4 // u32: upper half of ramdisk_size
	bpExtCmdLinePtr   = 0x0c8 // u32: upper half of cmd_line_ptr
	bpE820Entries     = 0x1e8 // u8
	bpSentinel        = 0x1ef // u8: zero says that the rest was zeroed
	bpE820Table       = 0x2d0 // 20-byte entries {u64 address, u64 size, u32 type}

	bootParamsSize = 4096
	e820EntrySize  = 20
)

// e820Type is the type of a range in the memory map (ACPI specification,
// "Address Range Types").
type e820Type uint32

const (
	e820RAM      e820Type = 1
	e820Reserved e820Type = 2
)

type e820Entry struct {
	start, end uint64
	typ        e820Type
}

// memoryMap is the map that firmware would have given. The ranges that bhyve's
// tables are written to after us must be reserved, else the kernel takes them
// for memory.
func memoryMap(low, high uint64) []e820Entry {
	m := []e820Entry{
		{0, lowEnd, e820RAM},
		{lowEnd, ebdaEnd, e820Reserved},
		{tablesLow, oneMiB, e820Reserved},
		{oneMiB, low, e820RAM},
		{ecfgBase, ecfgEnd, e820Reserved},
	}
	if high > 0 {
		m = append(m, e820Entry{HighBase, HighBase + high, e820RAM})
	}
	return m
}

// bootParams builds the zero page.
func bootParams(k *kernel, l *layout, cmdline, initrd Region, rsdp uint64) []byte {
	p := make([]byte, bootParamsSize)
	copy(p[setupHeader:], k.header)
	p[hdrTypeOfLoader] = loaderUndefined
	p[hdrLoadflags] |= loadedHigh
	if k.format == BzImage {
		// boot.rst, code32_start: a relocatable kernel that is not at 1 MiB is
		// told where it is.
		le.PutUint32(p[hdrCode32Start:], uint32(k.segments[0].addr))
	}

	le.PutUint32(p[hdrCmdLinePtr:], uint32(cmdline.Start))
	// Everything is below 4 GiB: the upper halves (bpExt*) stay zero.
	if size := initrd.End - initrd.Start; size > 0 {
		le.PutUint32(p[hdrRamdiskImage:], uint32(initrd.Start))
		le.PutUint32(p[hdrRamdiskSize:], uint32(size))
	}
	le.PutUint64(p[bpACPIRSDPAddr:], rsdp)

	entries := memoryMap(l.low, l.high)
	p[bpE820Entries] = byte(len(entries))
	for i, e := range entries {
		at := p[bpE820Table+i*e820EntrySize:]
		le.PutUint64(at, e.start)
		le.PutUint64(at[8:], e.end-e.start)
		le.PutUint32(at[16:], uint32(e.typ))
	}
	return p
}
