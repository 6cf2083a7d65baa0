package build

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os/exec"
)

// Offsets in a bzImage, from the kernel's Documentation/x86/boot.rst, "The
// Real-Mode Kernel Header".
const (
	hdrSetupSects    = 0x1f1 // uint8: 512-byte sectors of set-up code after the first
	hdrMagic         = 0x202 // "HdrS"
	hdrVersion       = 0x206 // uint16: boot protocol
	hdrPayloadOffset = 0x248 // uint32: from the start of the protected-mode code
	hdrPayloadLength = 0x24c // uint32
	hdrEnd           = hdrPayloadLength + 4

	// payloadProtocol is the first protocol that has the payload fields.
	payloadProtocol = 0x0208
)

// xzMagic starts an xz stream (The .xz File Format, 2.1.1.1).
var xzMagic = []byte("\xfd7zXZ\x00")

// extractKernel returns the ELF vmlinux inside a bzImage. The monitors start
// it at its PVH entry, which spares each boot the decompression: Debian's xz
// kernel takes seconds for that where the guest is emulated.
func extractKernel(ctx context.Context, image []byte) ([]byte, error) {
	payload, err := bzImagePayload(image)
	if err != nil {
		return nil, fmt.Errorf("kernel: %w", err)
	}
	if !bytes.HasPrefix(payload, xzMagic) {
		return nil, fmt.Errorf("kernel: compressed with something else than xz: it starts with % x", payload[:min(8, len(payload))])
	}
	// The build of a kernel appends the unpacked size to the compressed stream.
	stream, size := payload[:len(payload)-4], binary.LittleEndian.Uint32(payload[len(payload)-4:])
	cmd := exec.CommandContext(ctx, "xz", "--decompress", "--stdout")
	cmd.Stdin = bytes.NewReader(stream)
	var out, diag bytes.Buffer
	out.Grow(int(min(size, maxKernelSize)))
	cmd.Stdout, cmd.Stderr = &out, &diag
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("kernel: xz (Debian package xz-utils): %w: %s", err, bytes.TrimSpace(diag.Bytes()))
	}
	if out.Len() != int(size) {
		return nil, fmt.Errorf("kernel: unpacked to %d bytes, its header says %d", out.Len(), size)
	}
	if err := checkPVH(out.Bytes()); err != nil {
		return nil, fmt.Errorf("kernel: %w", err)
	}
	return out.Bytes(), nil
}

// maxKernelSize bounds what a header's word is taken for without proof.
const maxKernelSize = 256 << 20

func bzImagePayload(image []byte) ([]byte, error) {
	if len(image) < hdrEnd || string(image[hdrMagic:hdrMagic+4]) != "HdrS" {
		return nil, errors.New("not a bzImage")
	}
	if v := binary.LittleEndian.Uint16(image[hdrVersion:]); v < payloadProtocol {
		return nil, fmt.Errorf("boot protocol %#x is too old, want %#x", v, payloadProtocol)
	}
	setup := int64(image[hdrSetupSects])
	if setup == 0 {
		setup = 4 // says boot.rst, for compatibility
	}
	start := (setup+1)*512 + int64(binary.LittleEndian.Uint32(image[hdrPayloadOffset:]))
	length := int64(binary.LittleEndian.Uint32(image[hdrPayloadLength:]))
	if length < 4 || start+length > int64(len(image)) {
		return nil, fmt.Errorf("payload of %d bytes at %d is not within the %d bytes of the image", length, start, len(image))
	}
	return image[start : start+length], nil
}

// xenPhys32Entry is XEN_ELFNOTE_PHYS32_ENTRY (xen/include/public/elfnote.h):
// the note that holds the PVH entry point.
const xenPhys32Entry = 18

// checkPVH returns an error if the kernel cannot be started at a PVH entry.
func checkPVH(kernel []byte) error {
	f, err := elf.NewFile(bytes.NewReader(kernel))
	if err != nil {
		return err
	}
	for _, p := range f.Progs {
		if p.Type != elf.PT_NOTE {
			continue
		}
		notes := make([]byte, p.Filesz)
		if _, err := p.ReadAt(notes, 0); err != nil {
			return fmt.Errorf("read notes: %w", err)
		}
		for len(notes) >= 12 {
			name, desc := f.ByteOrder.Uint32(notes), f.ByteOrder.Uint32(notes[4:])
			kind := f.ByteOrder.Uint32(notes[8:])
			size := 12 + align4(name) + align4(desc)
			if size > uint64(len(notes)) {
				break
			}
			if kind == xenPhys32Entry && string(notes[12:12+name]) == "Xen\x00" {
				return nil
			}
			notes = notes[size:]
		}
	}
	return errors.New("it has no PVH entry (CONFIG_PVH)")
}

func align4(n uint32) uint64 { return (uint64(n) + 3) &^ 3 }
