package linuxboot

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

const (
	romSize = 64 << 10
	// romBase is where the ROM is seen at reset, below 4 GiB; its last 64 KiB
	// are also seen at 0xF0000.
	romBase = 1<<32 - romSize
)

// stubROM is firmware that brings a processor from reset into the state cpu
// and jumps to the kernel. Selectors are loaded from the loader's GDT, so that
// a wrong descriptor shows.
//
// With more than one vCPU it also has an MP table at its beginning, which is
// where bhyve writes its own: 0xF0000.
func stubROM(cpu CPU, vcpus int) []byte {
	const (
		code16 = 0xff00 // real mode
		code64 = 0xff80 // long mode
		gdtr   = 0xffe0
		reset  = 0xfff0 // where an x86 processor starts
	)
	u16 := func(v uint64) []byte { return le.AppendUint16(nil, uint16(v)) }
	u32 := func(v uint64) []byte { return le.AppendUint32(nil, uint32(v)) }
	u64 := func(v uint64) []byte { return le.AppendUint64(nil, v) }
	cat := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	op := func(b ...byte) []byte { return b }
	rom := make([]byte, romSize)
	put := func(at, limit int, p []byte) {
		if at+len(p) > limit {
			panic(fmt.Sprintf("%d bytes of code at %#x", len(p), at))
		}
		copy(rom[at:], p)
	}

	// jmp code16
	put(reset, romSize, cat(op(0xe9), u16(uint64((code16-reset-3)&0xffff))))
	put(gdtr, reset, cat(u16(uint64(cpu.GDTR.Limit)), u32(cpu.GDTR.Base)))
	put(code16, code64, cat(
		op(0xfa),                                    // cli
		op(0x2e, 0x66, 0x0f, 0x01, 0x16), u16(gdtr), // lgdtl %cs:gdtr
		op(0x66, 0xb8), u32(cpu.CR4), op(0x0f, 0x22, 0xe0), // mov $CR4, %eax; mov %eax, %cr4
		op(0x66, 0xb8), u32(cpu.CR3), op(0x0f, 0x22, 0xd8), // the same for CR3
		op(0x66, 0xb9), u32(0xc0000080), // mov $IA32_EFER, %ecx
		op(0x66, 0xb8), u32(cpu.EFER&^eferLMA), // LMA is the processor's to set
		op(0x66, 0x31, 0xd2, 0x0f, 0x30),                   // xor %edx, %edx; wrmsr
		op(0x66, 0xb8), u32(cpu.CR0), op(0x0f, 0x22, 0xc0), // paging and protection at once
		op(0x66, 0xea), u32(romBase+code64), u16(uint64(cpu.CS.Selector)), // ljmpl
	))
	segs := func() []byte {
		var b []byte
		for _, s := range []struct {
			seg   Segment
			modrm byte
		}{{cpu.DS, 0xd8}, {cpu.ES, 0xc0}, {cpu.SS, 0xd0}, {cpu.FS, 0xe0}, {cpu.GS, 0xe8}} {
			b = append(b, cat(op(0x66, 0xb8), u16(uint64(s.seg.Selector)), op(0x8e, s.modrm))...) // mov $sel, %ax; mov %ax, %seg
		}
		return b
	}
	put(code64, gdtr, cat(
		segs(),
		op(0x48, 0xbc), u64(cpu.RSP), // mov $RSP, %rsp
		op(0x48, 0xbe), u64(cpu.RSI), // mov $RSI, %rsi
		op(0x68), u32(cpu.RFLAGS), op(0x9d), // push $RFLAGS; popf
		op(0x48, 0xb8), u64(cpu.RIP), op(0xff, 0xe0), // mov $RIP, %rax; jmp *%rax
	))
	if vcpus > 1 {
		put(0, code16, mpTable(vcpus))
	}
	return rom
}

// mpTable is an Intel MultiProcessor table (specification 1.4, chapter 4) for
// the machine that QEMU emulates: processors, one ISA bus, one I/O APIC with
// the ISA interrupts on it.
func mpTable(vcpus int) []byte {
	const at = 0xf0000
	const ioapicID = 8
	var entries bytes.Buffer
	add := func(v any) { _ = binary.Write(&entries, le, v) }
	n := 0
	for i := range vcpus {
		flags := uint8(1) // usable
		if i == 0 {
			flags |= 2 // boots the machine
		}
		add([]uint8{0, uint8(i), 0x14, flags})
		add([]uint32{0x600, 0x201, 0, 0})
		n++
	}
	add([]uint8{1, 0})
	entries.WriteString("ISA   ")
	add([]uint8{2, ioapicID, 0x11, 1})
	add(uint32(0xfec00000))
	n += 2
	for irq := range uint8(16) {
		pin := irq
		if irq == 0 {
			pin = 2 // the timer is wired to pin 2
		} else if irq == 2 {
			continue
		}
		add([]uint8{3, 0, 0, 0, 0, irq, ioapicID, pin})
		n++
	}
	add([]uint8{4, 3, 0, 0, 0, 0, 0xff, 0}) // ExtINT
	add([]uint8{4, 1, 0, 0, 0, 0, 0xff, 1}) // NMI
	n += 2

	table := make([]byte, 44)
	copy(table, "PCMP")
	le.PutUint16(table[4:], uint16(len(table)+entries.Len()))
	table[6] = 4
	copy(table[8:], "TEST    LOADER      ")
	le.PutUint16(table[34:], uint16(n))
	le.PutUint32(table[36:], 0xfee00000)
	table = append(table, entries.Bytes()...)
	table[7] = checksum(table)

	pointer := make([]byte, 16)
	copy(pointer, "_MP_")
	le.PutUint32(pointer[4:], at+16)
	pointer[8], pointer[9] = 1, 4
	pointer[10] = checksum(pointer)
	return append(pointer, table...)
}

func checksum(p []byte) (sum byte) {
	for _, b := range p {
		sum -= b
	}
	return sum
}

// testInitramfs is an initramfs (cpio, "newc") with nothing in it but an
// /init that writes message to the console and restarts the machine.
func testInitramfs(message string) []byte {
	var b bytes.Buffer
	file := func(name string, mode int, data []byte) {
		fmt.Fprintf(&b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
			1, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
		b.WriteString(name + "\x00")
		b.Write(make([]byte, -b.Len()&3))
		b.Write(data)
		b.Write(make([]byte, -b.Len()&3))
	}
	file("init", 0o100755, testInit(message))
	file("TRAILER!!!", 0, nil)
	return b.Bytes()
}

// testInit is a static program: write(1, message), then reboot(RB_AUTOBOOT).
func testInit(message string) []byte {
	const base, header = 0x400000, 64 + 56
	var code []byte
	mov := func(reg byte, v uint32) { code = le.AppendUint32(append(code, reg), v) }
	const eax, edx, esi, edi = 0xb8, 0xba, 0xbe, 0xbf
	syscall := func() { code = append(code, 0x0f, 0x05) }
	const size = 8*5 + 2*2 + 2 // of the instructions below
	mov(eax, 1)                // write
	mov(edi, 1)
	mov(esi, base+header+size)
	mov(edx, uint32(len(message)))
	syscall()
	mov(eax, 169) // reboot(2), LINUX_REBOOT_MAGIC1 and 2
	mov(edi, 0xfee1dead)
	mov(esi, 672274793)
	mov(edx, 0x01234567) // LINUX_REBOOT_CMD_RESTART
	syscall()
	code = append(code, 0xeb, 0xfe) // for ever, should that fail
	if len(code) != size {
		panic(fmt.Sprintf("init has %d bytes of code, want %d", len(code), size))
	}
	code = append(code, message...)

	p := make([]byte, header)
	copy(p, "\x7fELF\x02\x01\x01")
	le.PutUint16(p[16:], 2)  // ET_EXEC
	le.PutUint16(p[18:], 62) // EM_X86_64
	le.PutUint32(p[20:], 1)
	le.PutUint64(p[24:], base+header)
	le.PutUint64(p[32:], 64) // program headers
	le.PutUint16(p[52:], 64)
	le.PutUint16(p[54:], 56)
	le.PutUint16(p[56:], 1)
	ph := p[64:]
	le.PutUint32(ph, 1)     // PT_LOAD
	le.PutUint32(ph[4:], 5) // R, X
	le.PutUint64(ph[16:], base)
	le.PutUint64(ph[24:], base)
	le.PutUint64(ph[32:], uint64(header+len(code)))
	le.PutUint64(ph[40:], uint64(header+len(code)))
	le.PutUint64(ph[48:], 0x1000)
	return append(p, code...)
}
