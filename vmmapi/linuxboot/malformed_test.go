package linuxboot

import (
	"debug/elf"
	"errors"
	"testing"

	"github.com/containerd/errdefs"
)

// TestMalformed: each field that is wrong is named by the error.
func TestMalformed(t *testing.T) {
	bz, vm := testBzImage(), testELF()
	const ph0, ph2 = 64, 64 + 2*56 // the LOAD segments' program headers
	const pOff, pPaddr, pFilesz, pMemsz = 8, 24, 32, 40
	tests := []struct {
		name   string
		file   []byte
		format Format
		field  string
	}{
		{"empty", nil, BzImage, "header"},
		{"three bytes", bz[:3], BzImage, "header"},
		{"text", []byte("#!/bin/sh\necho this is not a kernel\n"), BzImage, "header"},
		{"header cut short", bz[:setupHeaderMin-1], BzImage, "header"},
		{"no boot flag", patch(bz, hdrBootFlag, uint16(0)), BzImage, "boot_flag"},
		{"no magic", patch(bz, hdrMagic, uint32(0)), BzImage, "header"},
		{"protocol 2.11", patch(bz, hdrVersion, uint16(0x20b)), BzImage, "version"},
		{"header ends early", patch(bz, hdrJump+1, uint8(setupHeaderMin-1-hdrMagic)), BzImage, "jump"},
		{"header ends late", patch(bz, hdrJump+1, uint8(setupHeaderMax+1-hdrMagic)), BzImage, "jump"},
		{"zImage", patch(bz, hdrLoadflags, uint8(0)), BzImage, "loadflags"},
		{"32-bit", patch(bz, hdrXloadflags, uint16(0xfffe)), BzImage, "xloadflags"},
		{"alignment 0", patch(bz, hdrKernelAlignment, uint32(0)), BzImage, "kernel_alignment"},
		{"alignment of three pages", patch(bz, hdrKernelAlignment, uint32(0x3000)), BzImage, "kernel_alignment"},
		{"wants to be at 0", patch(bz, hdrPrefAddress, uint64(0)), BzImage, "pref_address"},
		{"wants to be at the end", patch(bz, hdrPrefAddress, ^uint64(0)-0xfff), BzImage, "pref_address"},
		{"wants to be over devices", patch(bz, hdrPrefAddress, uint64(LowLimit)), BzImage, "pref_address"},
		{"initrd below 1 MiB", patch(bz, hdrInitrdAddrMax, uint32(0xfffff)), BzImage, "initrd_addr_max"},
		{"no code", patch(bz, hdrSyssize, uint32(0)), BzImage, "syssize"},
		{"code up to the entry point", patch(bz, hdrSyssize, uint32(0x20)), BzImage, "syssize"},
		{"absurd code size", patch(bz, hdrSyssize, ^uint32(0)), BzImage, "syssize"},
		{"truncated", bz[:len(bz)-paragraph], BzImage, "syssize"},
		{"only a setup part", bz[:5*sectorSize], BzImage, "syssize"},
		{"setup part beyond the file", patch(bz, hdrSetupSects, uint8(255)), BzImage, "syssize"},
		{"init_size 0", patch(bz, hdrInitSize, uint32(0)), BzImage, "init_size"},

		{"ELF magic only", vm[:4], ELF, "e_ident"},
		{"ELF header cut short", vm[:63], ELF, "e_ident"},
		{"32-bit ELF", patch(vm, elf.EI_CLASS, uint8(elf.ELFCLASS32)), ELF, "e_ident"},
		{"big-endian", patch(vm, elf.EI_DATA, uint8(elf.ELFDATA2MSB)), ELF, "e_ident"},
		{"arm64", patch(vm, 18, uint16(elf.EM_AARCH64)), ELF, "e_machine"},
		{"object file", patch(vm, 16, uint16(elf.ET_REL)), ELF, "e_type"},
		{"program header size", patch(vm, 54, uint16(32)), ELF, "e_phentsize"},
		{"no program headers", patch(vm, 56, uint16(0)), ELF, "e_phnum"},
		{"too many program headers", patch(vm, 56, uint16(0xffff)), ELF, "e_phnum"},
		{"program headers beyond the file", patch(vm, 32, uint64(len(vm)-3*56+1)), ELF, "e_phoff"},
		{"program headers at the end of time", patch(vm, 32, ^uint64(0)-7), ELF, "e_phoff"},
		{"more in the file than in memory", patch(vm, ph2+pMemsz, uint64(0x7ff)), ELF, "p_filesz"},
		{"segment beyond the file", patch(vm, ph2+pOff, uint64(len(vm)-0x7ff)), ELF, "p_offset"},
		{"segment offset overflows", patch(vm, ph2+pOff, ^uint64(0)-0x7f), ELF, "p_offset"},
		{"segment at 0", patch(vm, ph0+pPaddr, uint64(0)), ELF, "p_paddr"},
		{"segment over devices", patch(vm, ph2+pPaddr, uint64(LowLimit-0x4fff)), ELF, "p_paddr"},
		{"segment address overflows", patch(vm, ph2+pPaddr, ^uint64(0)-0xfff), ELF, "p_paddr"},
		{"segment size overflows", patch(vm, ph2+pMemsz, ^uint64(0)), ELF, "p_paddr"},
		{"nothing to load", patch(patch(vm, ph0, uint32(0)), ph2, uint32(0)), ELF, "p_type"},
		{"entry outside", patch(vm, 24, uint64(testPref-1)), ELF, "e_entry"},
		{"entry in .bss", patch(vm, 24, uint64(testPref+0x2800)), ELF, "e_entry"},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			mem := newMemory(128 * miB)
			_, err := Load(mem, Config{Kernel: section(tc.file)})
			var format *FormatError
			if !errors.As(err, &format) || !errdefs.IsInvalidArgument(err) {
				t.Fatalf("got %v, want a FormatError", err)
			}
			if format.Format != tc.format || format.Field != tc.field {
				t.Errorf("got field %s of %s (%v), want %s of %s", format.Field, format.Format, err, tc.field, tc.format)
			}
			if len(mem.pages) != 0 {
				t.Error("memory was written")
			}
		})
	}
}

// TestAccepted are unusual files that are right all the same.
func TestAccepted(t *testing.T) {
	bz := testBzImage()
	for name, file := range map[string][]byte{
		"setup_sects 0 means 4":           patch(bz, hdrSetupSects, uint8(0)),
		"last paragraph not full":         bz[:len(bz)-paragraph+1],
		"signature behind the kernel":     append(append([]byte{}, bz...), make([]byte, 2000)...),
		"not aligned to kernel_alignment": patch(bz, hdrPrefAddress, uint64(testPref+pageSize)),
	} {
		mem := newMemory(128 * miB)
		got, err := Load(mem, Config{Kernel: section(file)})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		checkPlacement(t, got, mem)
	}
}

// FuzzLoad: whatever the file says, Load ends, stays inside of memory (the
// fake refuses anything else, which would be an error of neither type) and
// places nothing over anything.
func FuzzLoad(f *testing.F) {
	bz, vm := testBzImage(), testELF()
	for _, seed := range [][]byte{
		nil, bz, vm, bz[:0x300], vm[:0x100],
		patch(bz, hdrPrefAddress, uint64(0x100000)), patch(bz, hdrKernelAlignment, uint32(1<<31)),
		patch(bz, hdrInitSize, ^uint32(0)), patch(vm, 64+2*56+40, uint64(100*miB)),
	} {
		f.Add(seed, uint32(128*miB/pageSize), uint32(miB))
		f.Add(seed, uint32(5*giB/pageSize), uint32(0))
	}
	f.Fuzz(func(t *testing.T, file []byte, pages, initrd uint32) {
		mem := newMemory(uint64(pages) * pageSize)
		// Sizes come from hostile headers, not from the file's length: what is
		// written must stay affordable.
		if mem.low > 256*miB {
			mem.low = 256 * miB
		}
		got, err := Load(mem, Config{Kernel: section(file), Initrd: section(make([]byte, initrd%(2*miB))), Cmdline: "quiet"})
		if err != nil {
			if !errdefs.IsInvalidArgument(err) && !errdefs.IsOutOfRange(err) {
				t.Errorf("untyped error: %v", err)
			}
			return
		}
		checkPlacement(t, got, mem)
		entry := false
		for _, r := range got.Regions {
			entry = entry || r.Start <= got.CPU.RIP && got.CPU.RIP < r.End
		}
		if !entry {
			t.Errorf("entry %#x is in nothing that was placed", got.CPU.RIP)
		}
	})
}
