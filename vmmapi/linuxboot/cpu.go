package linuxboot

// CPU is the state in which the first virtual CPU starts: 64-bit mode, paging
// on, interrupts off (boot.rst, "64-bit Boot Protocol"). Registers that are
// not in it are zero.
type CPU struct {
	RIP, RSP, RSI, RFLAGS uint64
	CR0, CR3, CR4, EFER   uint64

	CS, DS, ES, SS, FS, GS, TR, LDTR Segment
	GDTR, IDTR                       Table
}

// Segment is a segment register with its hidden part.
type Segment struct {
	Selector uint16
	Base     uint64
	// Limit is in bytes.
	Limit uint32
	// Access is the access rights in the format of VMX, which bhyve uses on
	// either vendor's hardware: type in bits 3:0, S 4, DPL 6:5, P 7, AVL 12,
	// L 13, D/B 14, G 15, unusable 16 (Intel SDM volume 3, "Guest Register
	// State"; struct seg_desc in FreeBSD's machine/vmm.h).
	Access uint32
}

// Table is GDTR or IDTR.
type Table struct {
	Base uint64
	// Limit is the table's size less one.
	Limit uint32
}

// Access rights (Intel SDM volume 3, "Segment Descriptors" and "TSS
// Descriptor in 64-bit mode").
const (
	accCode     = 0xb // execute, read, accessed
	accData     = 0x3 // read, write, accessed
	accBusyTSS  = 0xb // as a system segment: 64-bit TSS, busy
	accS        = 1 << 4
	accP        = 1 << 7
	accL        = 1 << 13
	accDB       = 1 << 14
	accG        = 1 << 15
	accUnusable = 1 << 16

	flatLimit = 0xffffffff
)

// Selectors that boot.rst asks for: __BOOT_CS and __BOOT_DS.
const (
	bootCS     = 0x10
	bootDS     = 0x18
	gdtEntries = 4
)

// Control register bits (Intel SDM volume 3, "Control Registers" and
// "IA32_EFER").
const (
	cr0PE = 1 << 0
	// NE is set because VMX operation demands it (appendix A.7 of the SDM).
	cr0NE   = 1 << 5
	cr0PG   = 1 << 31
	cr4PAE  = 1 << 5
	eferLME = 1 << 8
	eferLMA = 1 << 10

	// rflagsOne is the bit of RFLAGS that is always set. IF is off.
	rflagsOne = 1 << 1
)

// Page table entry bits and geometry (Intel SDM volume 3, "4-Level Paging").
const (
	pteP  = 1 << 0
	pteRW = 1 << 1
	ptePS = 1 << 7

	tableEntries = 512
	largePage    = 2 << 20
	// identityGiB is how much is mapped, a page directory for each: all that is
	// addressed by 32 bits. The kernel maps the rest itself.
	identityGiB = 4
)

func startState(entry uint64) CPU {
	data := Segment{Selector: bootDS, Limit: flatLimit, Access: accData | accS | accP | accDB | accG}
	return CPU{
		RIP: entry, RSP: stackTop, RSI: bootParamsAddr, RFLAGS: rflagsOne,
		CR0: cr0PE | cr0NE | cr0PG, CR3: pageTablesAddr, CR4: cr4PAE, EFER: eferLME | eferLMA,
		CS: Segment{Selector: bootCS, Limit: flatLimit, Access: accCode | accS | accP | accL | accG},
		DS: data, ES: data, SS: data, FS: data, GS: data,
		TR:   Segment{Access: accBusyTSS | accP},
		LDTR: Segment{Access: accUnusable},
		GDTR: Table{Base: gdtAddr, Limit: gdtEntries*8 - 1},
	}
}

// gdt is the descriptor table that cpu's selectors refer to.
func gdt(cpu CPU) []byte {
	t := make([]byte, gdtEntries*8)
	for _, s := range []Segment{cpu.CS, cpu.DS} {
		le.PutUint64(t[s.Selector:], s.descriptor())
	}
	return t
}

// descriptor encodes the segment as a GDT entry (Intel SDM volume 3, figure
// "Segment Descriptor").
func (s Segment) descriptor() uint64 {
	limit := uint64(s.Limit)
	if s.Access&accG != 0 {
		limit >>= 12 // counted in pages
	}
	return limit&0xffff |
		(s.Base&0xffffff)<<16 |
		uint64(s.Access&0xff)<<40 |
		(limit>>16&0xf)<<48 |
		uint64(s.Access>>12&0xf)<<52 |
		(s.Base>>24&0xff)<<56
}

// pageTables maps the first identityGiB to themselves: PML4, PDPT, then the
// page directories, a page each, to be written at addr.
func pageTables(addr uint64) []byte {
	const upper = pteP | pteRW
	t := make([]byte, (2+identityGiB)*pageSize)
	le.PutUint64(t, (addr+pageSize)|upper)
	pdpt, dirs := t[pageSize:], t[2*pageSize:]
	for i := range identityGiB {
		le.PutUint64(pdpt[i*8:], (addr+uint64(2+i)*pageSize)|upper)
	}
	for i := range identityGiB * tableEntries {
		le.PutUint64(dirs[i*8:], uint64(i)*largePage|upper|ptePS)
	}
	return t
}
