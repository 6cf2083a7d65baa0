package bundle

import (
	"debug/elf"
	"encoding/binary"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	confs "github.com/containerd/continuity/fs"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// guestMachines are the ELF machines that an amd64 guest kernel runs.
var guestMachines = []elf.Machine{elf.EM_X86_64, elf.EM_386}

// defaultPath is where a program is looked for if the process has no PATH, as
// runc and crun have it.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// CheckProgram refuses a process whose program was built for another
// architecture: errdefs.ErrInvalidArgument, with both architectures in the
// text. In the guest it would be an "Exec format error" that names neither.
// Anything else about the program (that it is missing, or a script) is left to
// the guest to find, which has the last word.
func CheckProgram(rootfs string, spec *specs.Spec) error {
	for _, candidate := range programPaths(spec.Process) {
		// RootPath resolves symbolic links inside rootfs, never out of it.
		name, err := confs.RootPath(rootfs, candidate)
		if err != nil {
			continue
		}
		f, err := openRegular(name)
		if err != nil {
			continue
		}
		defer f.Close()
		if m, ok := machineOf(f); ok && !slices.Contains(guestMachines, m) {
			return fmt.Errorf("program %s of the image is for %s, the guest is %s: %w", candidate, m, elf.EM_X86_64, errdefs.ErrInvalidArgument)
		}
		return nil
	}
	return nil
}

// machineOf reads which machine an ELF file is for; false if it is none: a script,
// or not a program at all. It reads the few bytes that say so (elf(5)), and
// nothing else of a file that anybody may have made.
func machineOf(f io.Reader) (elf.Machine, bool) {
	var head [elf.EI_NIDENT + 4]byte // with e_type and e_machine
	if _, err := io.ReadFull(f, head[:]); err != nil || string(head[:len(elf.ELFMAG)]) != elf.ELFMAG {
		return 0, false
	}
	machine := head[elf.EI_NIDENT+2:]
	switch elf.Data(head[elf.EI_DATA]) {
	case elf.ELFDATA2LSB:
		return elf.Machine(binary.LittleEndian.Uint16(machine)), true
	case elf.ELFDATA2MSB:
		return elf.Machine(binary.BigEndian.Uint16(machine)), true
	}
	return 0, false
}

// programPaths lists where args[0] may be, in the order of the search.
func programPaths(p *specs.Process) []string {
	program := p.Args[0]
	if strings.Contains(program, "/") {
		if !path.IsAbs(program) {
			program = path.Join("/", p.Cwd, program)
		}
		return []string{program}
	}
	search := defaultPath
	for _, e := range p.Env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			search = v
		}
	}
	var paths []string
	for _, dir := range filepath.SplitList(search) {
		paths = append(paths, path.Join("/", dir, program))
	}
	return paths
}

// openRegular opens name only if it is a regular file: to open a FIFO of the
// image would block.
func openRegular(name string) (*os.File, error) {
	st, err := os.Lstat(name)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fs.ErrInvalid
	}
	return os.Open(name)
}
