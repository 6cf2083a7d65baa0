package bundle

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// program is the shortest ELF file that says which machine it is for.
func program(t *testing.T, m elf.Machine) []byte {
	t.Helper()
	var ident [elf.EI_NIDENT]byte
	copy(ident[:], elf.ELFMAG)
	ident[elf.EI_DATA] = byte(elf.ELFDATA2LSB)
	ident[elf.EI_VERSION] = byte(elf.EV_CURRENT)
	var header any
	if m == elf.EM_386 || m == elf.EM_ARM {
		ident[elf.EI_CLASS] = byte(elf.ELFCLASS32)
		header = elf.Header32{Ident: ident, Type: uint16(elf.ET_EXEC), Machine: uint16(m), Version: 1, Ehsize: 52, Phentsize: 32, Shentsize: 40}
	} else {
		ident[elf.EI_CLASS] = byte(elf.ELFCLASS64)
		header = elf.Header64{Ident: ident, Type: uint16(elf.ET_EXEC), Machine: uint16(m), Version: 1, Ehsize: 64, Phentsize: 56, Shentsize: 64}
	}
	var b bytes.Buffer
	if err := binary.Write(&b, binary.LittleEndian, header); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// image is a rootfs with programs for several machines.
func image(t *testing.T) string {
	t.Helper()
	outside := t.TempDir()
	rootfs := filepath.Join(outside, "rootfs")
	for _, dir := range []string{"bin", "usr/bin", "opt"} {
		if err := os.MkdirAll(filepath.Join(rootfs, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, data := range map[string][]byte{
		"../outside":    program(t, elf.EM_X86_64),
		"bin/amd64":     program(t, elf.EM_X86_64),
		"bin/386":       program(t, elf.EM_386),
		"bin/arm64":     program(t, elf.EM_AARCH64),
		"usr/bin/arm":   program(t, elf.EM_ARM),
		"opt/riscv":     program(t, elf.EM_RISCV),
		"opt/first":     program(t, elf.EM_AARCH64),
		"bin/first":     program(t, elf.EM_X86_64),
		"bin/script":    []byte("#!/bin/sh\n"),
		"bin/empty":     nil,
		"bin/truncated": program(t, elf.EM_AARCH64)[:19],
		"bin/malformed": program(t, elf.EM_AARCH64)[:20], // No more than what is looked at.
	} {
		if err := os.WriteFile(filepath.Join(rootfs, name), data, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for link, target := range map[string]string{
		"bin/link":     "arm64",
		"bin/abslink":  "/bin/arm64",
		"bin/escape":   "../../../../../../../bin/arm64", // In the image, ".." stops at its root.
		"bin/hostlink": filepath.Join(outside, "outside"),
		"bin/loop":     "loop",
	} {
		if err := os.Symlink(target, filepath.Join(rootfs, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(rootfs, "bin/fifo"), 0o755); err != nil {
		t.Fatal(err)
	}
	return rootfs
}

func TestCheckProgram(t *testing.T) {
	rootfs := image(t)
	for name, tc := range map[string]struct {
		process specs.Process
		// foreign is the machine that the error must name, or empty for none.
		foreign string
	}{
		"amd64":                           {specs.Process{Args: []string{"/bin/amd64"}}, ""},
		"386, which amd64 kernels run":    {specs.Process{Args: []string{"/bin/386"}}, ""},
		"arm64":                           {specs.Process{Args: []string{"/bin/arm64"}}, "EM_AARCH64"},
		"arm64, relative to cwd":          {specs.Process{Args: []string{"./arm64"}, Cwd: "/bin"}, "EM_AARCH64"},
		"arm64, .. above the root":        {specs.Process{Args: []string{"../../bin/arm64"}, Cwd: "/bin"}, "EM_AARCH64"},
		"arm64, by the default PATH":      {specs.Process{Args: []string{"arm64"}}, "EM_AARCH64"},
		"arm, 32 bits, by PATH":           {specs.Process{Args: []string{"arm"}, Env: []string{"PATH=/opt:/usr/bin"}}, "EM_ARM"},
		"first in PATH wins":              {specs.Process{Args: []string{"first"}, Env: []string{"PATH=/opt:/bin"}}, "EM_AARCH64"},
		"first in PATH wins, turned":      {specs.Process{Args: []string{"first"}, Env: []string{"PATH=/bin:/opt"}}, ""},
		"the last PATH counts":            {specs.Process{Args: []string{"first"}, Env: []string{"PATH=/bin", "PATH=/opt"}}, "EM_AARCH64"},
		"not in PATH":                     {specs.Process{Args: []string{"riscv"}, Env: []string{"PATH=/bin"}}, ""},
		"script":                          {specs.Process{Args: []string{"/bin/script"}}, ""},
		"empty file":                      {specs.Process{Args: []string{"/bin/empty"}}, ""},
		"truncated":                       {specs.Process{Args: []string{"/bin/truncated"}}, ""},
		"malformed":                       {specs.Process{Args: []string{"/bin/malformed"}}, "EM_AARCH64"},
		"missing":                         {specs.Process{Args: []string{"/bin/none"}}, ""},
		"directory":                       {specs.Process{Args: []string{"/bin"}}, ""},
		"empty name":                      {specs.Process{Args: []string{""}}, ""},
		"link":                            {specs.Process{Args: []string{"/bin/link"}}, "EM_AARCH64"},
		"absolute link":                   {specs.Process{Args: []string{"/bin/abslink"}}, "EM_AARCH64"},
		"link above the root":             {specs.Process{Args: []string{"/bin/escape"}}, "EM_AARCH64"},
		"link to a path of the host only": {specs.Process{Args: []string{"/bin/hostlink"}}, ""},
		"link to itself":                  {specs.Process{Args: []string{"/bin/loop"}}, ""},
		"FIFO, which must not be opened":  {specs.Process{Args: []string{"/bin/fifo"}}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			err := CheckProgram(rootfs, &specs.Spec{Process: &tc.process})
			if tc.foreign == "" {
				if err != nil {
					t.Errorf("refused: %v", err)
				}
				return
			}
			if !errdefs.IsInvalidArgument(err) {
				t.Fatalf("got %v, want InvalidArgument", err)
			}
			for _, word := range []string{tc.foreign, "EM_X86_64"} {
				if !strings.Contains(err.Error(), word) {
					t.Errorf("error does not name %s: %v", word, err)
				}
			}
		})
	}
}

// A link that leaves the image must not make the host's own files the judge of
// the image: the host's program here is one that would be refused.
func TestCheckProgramStaysInTheImage(t *testing.T) {
	rootfs := image(t)
	outside := filepath.Join(filepath.Dir(rootfs), "outside")
	if err := os.WriteFile(outside, program(t, elf.EM_AARCH64), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, arg := range []string{"/bin/hostlink", "../outside", "/../outside", outside} {
		if err := CheckProgram(rootfs, &specs.Spec{Process: &specs.Process{Args: []string{arg}, Cwd: "/"}}); err != nil {
			t.Errorf("%s: judged by a file outside of the image: %v", arg, err)
		}
	}
}
