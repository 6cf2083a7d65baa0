package build

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"os/exec"
	"strings"
	"testing"
)

// makeELF is a program with one segment.
func makeELF(t *testing.T, kind elf.ProgType, segment []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	const headers = 64 + 56
	h := elf.Header64{
		Type: uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT),
		Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 1, Shentsize: 64,
	}
	copy(h.Ident[:], elf.ELFMAG)
	h.Ident[elf.EI_CLASS] = byte(elf.ELFCLASS64)
	h.Ident[elf.EI_DATA] = byte(elf.ELFDATA2LSB)
	h.Ident[elf.EI_VERSION] = byte(elf.EV_CURRENT)
	for _, v := range []any{h, elf.Prog64{Type: uint32(kind), Off: headers, Filesz: uint64(len(segment)), Memsz: uint64(len(segment))}, segment} {
		if err := binary.Write(&b, binary.LittleEndian, v); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

func note(name string, kind uint32, desc []byte) []byte {
	b := binary.LittleEndian.AppendUint32(nil, uint32(len(name)+1))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(desc)))
	b = binary.LittleEndian.AppendUint32(b, kind)
	for _, part := range [][]byte{append([]byte(name), 0), desc} {
		b = append(b, part...)
		b = append(b, make([]byte, (4-len(part)%4)%4)...)
	}
	return b
}

// makeBzImage wraps a payload as the kernel's build does.
func makeBzImage(payload []byte) []byte {
	const setupSects, offset = 2, 16
	start := (setupSects+1)*512 + offset
	image := make([]byte, start, start+len(payload)+8)
	image[0x1f1] = setupSects
	copy(image[0x202:], "HdrS")
	binary.LittleEndian.PutUint16(image[0x206:], 0x020f)
	binary.LittleEndian.PutUint32(image[0x248:], offset)
	binary.LittleEndian.PutUint32(image[0x24c:], uint32(len(payload)))
	image = append(image, payload...)
	return append(image, "trailing"...)
}

func xz(t *testing.T, data []byte) []byte {
	t.Helper()
	cmd := exec.Command("xz", "--check=crc32", "--x86", "--lzma2=", "--stdout")
	cmd.Stdin = bytes.NewReader(data)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func withSize(stream []byte, n int) []byte {
	return binary.LittleEndian.AppendUint32(bytes.Clone(stream), uint32(n))
}

func TestExtractKernel(t *testing.T) {
	kernel := makeELF(t, elf.PT_NOTE, append(note("GNU", 18, []byte("other")), note("Xen", 18, make([]byte, 8))...))
	got, err := extractKernel(t.Context(), makeBzImage(withSize(xz(t, kernel), len(kernel))))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, kernel) {
		t.Error("it is another kernel")
	}
}

func TestExtractKernelRefuses(t *testing.T) {
	kernel := makeELF(t, elf.PT_NOTE, note("Xen", 18, make([]byte, 8)))
	good := makeBzImage(withSize(xz(t, kernel), len(kernel)))
	change := func(f func(image []byte)) []byte {
		image := bytes.Clone(good)
		f(image)
		return image
	}
	noPVH := makeELF(t, elf.PT_NOTE, append(note("Xen", 6, make([]byte, 8)), note("GNU", 18, nil)...))
	for name, tt := range map[string]struct {
		image []byte
		says  string
	}{
		"not a kernel":       {[]byte("#!/bin/sh"), "not a bzImage"},
		"no magic":           {change(func(b []byte) { b[0x202] = 'h' }), "not a bzImage"},
		"old protocol":       {change(func(b []byte) { b[0x206], b[0x207] = 7, 2 }), "too old"},
		"payload outside":    {change(func(b []byte) { b[0x24e] = 0xff }), "not within"},
		"other compression":  {makeBzImage([]byte("\x28\xb5\x2f\xfd and so on")), "28 b5 2f fd"},
		"damaged stream":     {change(func(b []byte) { b[(2+1)*512+16+24] ^= 0xff }), "xz"},
		"wrong size":         {makeBzImage(withSize(xz(t, kernel), len(kernel)+1)), "its header says"},
		"not ELF inside":     {makeBzImage(withSize(xz(t, make([]byte, 64)), 64)), "bad magic"},
		"no PVH entry":       {makeBzImage(withSize(xz(t, noPVH), len(noPVH))), "CONFIG_PVH"},
		"notes that overrun": {badNotes(t), "CONFIG_PVH"},
	} {
		_, err := extractKernel(t.Context(), tt.image)
		if err == nil || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: got %v, want an error saying %q", name, err, tt.says)
		}
	}
}

func badNotes(t *testing.T) []byte {
	n := note("Xen", 18, nil)
	binary.LittleEndian.PutUint32(n, 0xffffffff)
	kernel := makeELF(t, elf.PT_NOTE, n)
	return makeBzImage(withSize(xz(t, kernel), len(kernel)))
}
