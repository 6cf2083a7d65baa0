package linuxboot

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"io"
)

// memory is guest memory that holds only the pages that were written, and
// refuses whatever is not inside one of its two pieces.
type memory struct {
	low, high uint64
	pages     map[uint64][]byte
	// failAt makes a write that touches this address fail.
	failAt uint64
}

func newMemory(size uint64) *memory {
	low, high := Split(size)
	return &memory{low: low, high: high, pages: map[uint64][]byte{}}
}

func (m *memory) LowSize() uint64  { return m.low }
func (m *memory) HighSize() uint64 { return m.high }

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	start, end := uint64(off), uint64(off)+uint64(len(p))
	if off < 0 || end > m.low && (start < HighBase || end > HighBase+m.high) {
		return 0, fmt.Errorf("write of %d bytes at %#x is outside of memory", len(p), off)
	}
	if m.failAt != 0 && start <= m.failAt && m.failAt < end {
		return 0, io.ErrShortWrite
	}
	for n := 0; n < len(p); {
		addr := start + uint64(n)
		page, ok := m.pages[addr/pageSize]
		if !ok {
			page = make([]byte, pageSize)
			m.pages[addr/pageSize] = page
		}
		n += copy(page[addr%pageSize:], p[n:])
	}
	return len(p), nil
}

// read returns n bytes at addr; what was never written is zero.
func (m *memory) read(addr uint64, n int) []byte {
	out := make([]byte, n)
	for i := 0; i < n; {
		a := addr + uint64(i)
		room := min(n-i, int(pageSize-a%pageSize))
		copy(out[i:i+room], m.pages[a/pageSize][min(a%pageSize, uint64(len(m.pages[a/pageSize]))):])
		i += room
	}
	return out
}

func section(p []byte) *io.SectionReader {
	return io.NewSectionReader(bytes.NewReader(p), 0, int64(len(p)))
}

// Numbers of the made-up kernels.
const (
	testPref     = 16 << 20
	testInitSize = 4 << 20
	testSyssize  = 0x3000
)

// testBzImage is the smallest file that is a proper bzImage. Its code is a
// pattern that can be found again.
func testBzImage() []byte {
	p := make([]byte, (4+1)*sectorSize+testSyssize)
	p[hdrSetupSects] = 4
	le.PutUint32(p[hdrSyssize:], testSyssize/paragraph)
	le.PutUint16(p[hdrBootFlag:], bootFlag)
	p[hdrJump], p[hdrJump+1] = 0xeb, setupHeaderMin+4-hdrMagic
	copy(p[hdrMagic:], headerMagic)
	le.PutUint16(p[hdrVersion:], 0x020f)
	p[hdrLoadflags] = loadedHigh
	le.PutUint32(p[hdrInitrdAddrMax:], 0x7fffffff)
	le.PutUint32(p[hdrKernelAlignment:], 2<<20)
	le.PutUint16(p[hdrXloadflags:], xlfKernel64)
	le.PutUint32(p[hdrCmdlineSize:], 2047)
	le.PutUint64(p[hdrPrefAddress:], testPref)
	le.PutUint32(p[hdrInitSize:], testInitSize)
	copy(p[5*sectorSize:], pattern(testSyssize))
	return p
}

// testELF is a vmlinux with two segments, the second with a .bss.
func testELF() []byte {
	head := elf.Header64{
		Type: uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: 1,
		Entry: testPref + 0x40, Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 3,
	}
	copy(head.Ident[:], elf.ELFMAG)
	head.Ident[elf.EI_CLASS], head.Ident[elf.EI_DATA] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB)
	progs := []elf.Prog64{
		{Type: uint32(elf.PT_LOAD), Off: 0x1000, Paddr: testPref, Filesz: 0x1000, Memsz: 0x1000},
		{Type: uint32(elf.PT_NOTE), Off: 0xffff0000, Filesz: 0x10, Memsz: 0x10},
		{Type: uint32(elf.PT_LOAD), Off: 0x2000, Paddr: testPref + 0x2000, Filesz: 0x800, Memsz: 0x5000},
	}
	var b bytes.Buffer
	_ = binary.Write(&b, le, head)
	_ = binary.Write(&b, le, progs)
	b.Write(make([]byte, 0x1000-b.Len()))
	b.Write(pattern(0x1800))
	return b.Bytes()
}

func pattern(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i*7 + i>>8)
	}
	return p
}

// patch returns a copy of p with v written at off, little-endian.
func patch(p []byte, off int, v any) []byte {
	p = bytes.Clone(p)
	_, err := binary.Encode(p[off:], le, v)
	if err != nil {
		panic(err)
	}
	return p
}
