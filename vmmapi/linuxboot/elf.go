package linuxboot

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

const (
	elfMagic = elf.ELFMAG
	// maxProgs bounds the program headers that are read. A vmlinux has five or
	// six.
	maxProgs = 64
)

// What a vmlinux says nothing about, as its bzImage says it
// (arch/x86/boot/header.S): COMMAND_LINE_SIZE - 1 on x86, the highest address
// of an initramfs.
const (
	elfCmdlineMax = 2047
	elfInitrdMax  = 0x7fffffff
)

// parseELF reads the program headers of a vmlinux. debug/elf gives the types;
// its reader is documented as not hardened against hostile files, and reads
// far more than is needed here.
func parseELF(f *io.SectionReader) (*kernel, error) {
	bad := func(field, format string, args ...any) error {
		return &FormatError{ELF, field, fmt.Sprintf(format, args...)}
	}
	var h elf.Header64
	if err := readStruct(f, 0, &h); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, bad("e_ident", "the file has only %d bytes", f.Size())
		}
		return nil, fmt.Errorf("read kernel header: %w", err)
	}
	if c, d := elf.Class(h.Ident[elf.EI_CLASS]), elf.Data(h.Ident[elf.EI_DATA]); c != elf.ELFCLASS64 || d != elf.ELFDATA2LSB {
		return nil, bad("e_ident", "%v, %v: want a 64-bit little-endian kernel", c, d)
	}
	if m := elf.Machine(h.Machine); m != elf.EM_X86_64 {
		return nil, bad("e_machine", "%v: want a kernel for x86-64", m)
	}
	if t := elf.Type(h.Type); t != elf.ET_EXEC {
		return nil, bad("e_type", "%v: want an executable", t)
	}
	var p elf.Prog64
	if want := binary.Size(p); int(h.Phentsize) != want {
		return nil, bad("e_phentsize", "%d, want %d", h.Phentsize, want)
	}
	if h.Phnum == 0 || h.Phnum > maxProgs {
		return nil, bad("e_phnum", "%d program headers, want 1 to %d", h.Phnum, maxProgs)
	}
	size := uint64(f.Size())
	if table := uint64(h.Phnum) * uint64(h.Phentsize); h.Phoff > size || size-h.Phoff < table {
		return nil, bad("e_phoff", "program headers at %#x reach beyond the file's %#x bytes", h.Phoff, size)
	}

	k := &kernel{format: ELF, header: elfSetupHeader(), cmdlineMax: elfCmdlineMax, initrdMax: elfInitrdMax + 1}
	for i := range int(h.Phnum) {
		if err := readStruct(f, int64(h.Phoff)+int64(i)*int64(h.Phentsize), &p); err != nil {
			return nil, fmt.Errorf("read program header %d: %w", i, err)
		}
		if elf.ProgType(p.Type) != elf.PT_LOAD || p.Memsz == 0 {
			continue
		}
		if p.Filesz > p.Memsz {
			return nil, bad("p_filesz", "segment %d has %#x bytes in the file and %#x in memory", i, p.Filesz, p.Memsz)
		}
		if p.Off > size || size-p.Off < p.Filesz {
			return nil, bad("p_offset", "segment %d, %#x bytes at %#x, reaches beyond the file's %#x bytes", i, p.Filesz, p.Off, size)
		}
		if p.Paddr < oneMiB || p.Paddr >= LowLimit || p.Memsz > LowLimit-p.Paddr {
			return nil, bad("p_paddr", "segment %d, %#x bytes at %#x: want %#x to %#x", i, p.Memsz, p.Paddr, oneMiB, uint64(LowLimit))
		}
		if h.Entry >= p.Paddr && h.Entry-p.Paddr < p.Filesz {
			k.entry = h.Entry
		}
		k.segments = append(k.segments, segment{
			name: fmt.Sprintf("kernel segment %d", i), addr: p.Paddr, size: p.Memsz,
			fileOff: int64(p.Off), fileSize: p.Filesz, zeroes: p.Memsz - p.Filesz,
		})
	}
	if len(k.segments) == 0 {
		return nil, bad("p_type", "no segment is to be loaded")
	}
	if k.entry == 0 {
		return nil, bad("e_entry", "%#x is in no segment's physical addresses", h.Entry)
	}
	return k, nil
}

// elfSetupHeader is the setup header for a kernel that carries none: it says
// that boot_params is filled in, and by which version of the protocol.
func elfSetupHeader() []byte {
	var p [setupHeaderMin]byte
	le.PutUint16(p[hdrBootFlag:], bootFlag)
	copy(p[hdrMagic:], headerMagic)
	le.PutUint16(p[hdrVersion:], minVersion)
	p[hdrLoadflags] = loadedHigh
	le.PutUint32(p[hdrInitrdAddrMax:], elfInitrdMax)
	le.PutUint32(p[hdrCmdlineSize:], elfCmdlineMax)
	return p[setupHeader:]
}

func readStruct(f io.ReaderAt, off int64, v any) error {
	buf := make([]byte, binary.Size(v))
	if _, err := f.ReadAt(buf, off); err != nil {
		return err
	}
	return binary.Read(bytes.NewReader(buf), le, v)
}
