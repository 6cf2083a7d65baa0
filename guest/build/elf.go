package build

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// libraryDirs are where Debian's dynamic linker looks when there is no cache
// and no run path (ld.so(8)).
var libraryDirs = []string{"lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "lib", "usr/lib"}

// addProgram copies a program from the unpacked packages in root into t as
// name, together with its dynamic linker and every library that it needs,
// directly or not. Libraries stay in their directories.
func addProgram(t tree, root, from, name string) error {
	data, links, err := readProgram(root, from)
	if err != nil {
		return err
	}
	t.file(name, 0o755, data)
	if links.interpreter != "" {
		// The path in the program is often a link to a file beside the libraries.
		interpreter, err := findLibrary(root, path.Base(links.interpreter))
		if err != nil {
			return fmt.Errorf("%s: %w", from, err)
		}
		data, err := os.ReadFile(filepath.Join(root, interpreter))
		if err != nil {
			return fmt.Errorf("%s: %w", from, err)
		}
		t.file(links.interpreter[1:], 0o755, data)
	}
	return addLibraries(t, root, from, links)
}

func addLibraries(t tree, root, from string, links linkage) error {
	for _, soname := range links.needed {
		if soname == path.Base(links.interpreter) {
			continue
		}
		lib, err := findLibrary(root, soname)
		if err != nil {
			return fmt.Errorf("%s: %w", from, err)
		}
		if _, ok := t[lib]; ok {
			continue
		}
		data, next, err := readProgram(root, lib)
		if err != nil {
			return err
		}
		t.file(lib, 0o644, data)
		next.interpreter = links.interpreter
		if err := addLibraries(t, root, lib, next); err != nil {
			return err
		}
	}
	return nil
}

// findLibrary returns the path, relative to root, at which the dynamic linker
// would find soname.
func findLibrary(root, soname string) (string, error) {
	for _, dir := range libraryDirs {
		lib := path.Join(dir, soname)
		switch _, err := os.Stat(filepath.Join(root, lib)); {
		case err == nil:
			return lib, nil
		case !errors.Is(err, fs.ErrNotExist):
			return "", err
		}
	}
	return "", fmt.Errorf("it needs %s, which is in none of the lock file's packages", soname)
}

// linkage is what a program or library wants of the dynamic linker.
type linkage struct {
	interpreter string // absolute; empty for libraries and static programs
	needed      []string
}

// readProgram reads a program or library of the unpacked packages in root.
func readProgram(root, name string) ([]byte, linkage, error) {
	data, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		return nil, linkage{}, err
	}
	links, err := readLinkage(bytes.NewReader(data))
	if err != nil {
		return nil, linkage{}, fmt.Errorf("%s: %w", name, err)
	}
	return data, links, nil
}

func readLinkage(r io.ReaderAt) (linkage, error) {
	f, err := elf.NewFile(r)
	if err != nil {
		return linkage{}, err
	}
	var l linkage
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		path := make([]byte, p.Filesz)
		if _, err := p.ReadAt(path, 0); err != nil {
			return linkage{}, fmt.Errorf("read its interpreter: %w", err)
		}
		l.interpreter = strings.TrimSuffix(string(path), "\x00")
		if !filepath.IsAbs(l.interpreter) {
			return linkage{}, fmt.Errorf("its interpreter %q is not an absolute path", l.interpreter)
		}
	}
	if f.SectionByType(elf.SHT_DYNAMIC) == nil {
		return l, nil // static
	}
	if l.needed, err = f.DynString(elf.DT_NEEDED); err != nil {
		return linkage{}, err
	}
	for _, tag := range []elf.DynTag{elf.DT_RPATH, elf.DT_RUNPATH} {
		dirs, err := f.DynString(tag)
		if err != nil {
			return linkage{}, err
		}
		if len(dirs) > 0 {
			return linkage{}, fmt.Errorf("it has a run path (%s), which the image does not reproduce", dirs[0])
		}
	}
	return l, nil
}
