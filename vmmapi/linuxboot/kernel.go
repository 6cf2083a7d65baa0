package linuxboot

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Format is a kind of kernel file.
type Format string

const (
	// BzImage is the compressed kernel that distributions install as vmlinuz.
	BzImage Format = "bzImage"
	// ELF is an uncompressed vmlinux: larger, and started sooner, because
	// nothing is decompressed in the guest. Its kernel address is not
	// randomized: that is done by the code that decompresses.
	ELF Format = "ELF"
)

// kernel is what both formats come down to.
type kernel struct {
	format   Format
	segments []segment
	// entry is the address of the 64-bit entry point.
	entry uint64
	// header is copied into boot_params at setupHeader.
	header []byte
	// cmdlineMax is the most bytes of command line, without the final NUL.
	cmdlineMax uint64
	// initrdMax is the first address that the initramfs must not reach.
	initrdMax uint64
}

// segment is a part of the kernel file and where it goes. size is what the
// kernel occupies there, of which the first fileSize bytes come from the file;
// zeroes follow up to zeroEnd.
type segment struct {
	name             string
	addr, size       uint64
	fileOff          int64
	fileSize, zeroes uint64
}

// parseKernel recognizes the format and reads the headers.
func parseKernel(f *io.SectionReader) (*kernel, error) {
	var magic [4]byte
	if _, err := f.ReadAt(magic[:], 0); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, &FormatError{BzImage, "header", fmt.Sprintf("the file has only %d bytes", f.Size())}
		}
		return nil, fmt.Errorf("read kernel: %w", err)
	}
	if string(magic[:]) == elfMagic {
		return parseELF(f)
	}
	return parseBzImage(f)
}

// le is the byte order of everything here.
var le = binary.LittleEndian
