package image

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"runtime"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Foreign is an image that claims this machine's architecture and whose only
// program, /hello, is for another: what a mislabelled build gives.
func Foreign(name string) (*Image, error) {
	machine := elf.EM_AARCH64
	if runtime.GOARCH == "arm64" {
		machine = elf.EM_X86_64
	}
	program, err := tinyELF(machine)
	if err != nil {
		return nil, fmt.Errorf("program of another architecture: %w", err)
	}
	var t tree
	for _, d := range []string{"dev", "proc", "sys"} {
		t.dir(d, 0o755)
	}
	t.file("hello", 0o755, program)
	layer, err := t.tar()
	if err != nil {
		return nil, err
	}
	return &Image{
		Name:         name,
		Architecture: runtime.GOARCH,
		Layer:        layer,
		Config:       ocispec.ImageConfig{Cmd: []string{"/hello"}, WorkingDir: "/"},
	}, nil
}

// tinyELF is a valid executable with one loaded segment, as far as a kernel
// looks before it compares the architecture (System V gABI, chapters 4 and 5).
func tinyELF(machine elf.Machine) ([]byte, error) {
	const base, headers = 0x400000, 64 + 56
	header := elf.Header64{
		Ident: [elf.EI_NIDENT]byte{
			0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT),
		},
		Type: uint16(elf.ET_EXEC), Machine: uint16(machine), Version: uint32(elf.EV_CURRENT),
		Entry: base + headers, Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 1,
	}
	load := elf.Prog64{
		Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X),
		Vaddr: base, Paddr: base, Filesz: headers, Memsz: headers, Align: 0x1000,
	}
	var buf bytes.Buffer
	for _, part := range []any{header, load} {
		if err := binary.Write(&buf, binary.LittleEndian, part); err != nil {
			return nil, err
		}
	}
	return buf.Bytes(), nil
}
