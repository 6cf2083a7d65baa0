package build

import (
	"debug/elf"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// moduleSet finds kernel modules by name below an unpacked /lib/modules
// directory. Debian's package has no modules.dep (its installation makes it),
// so dependencies come from where depmod finds most of them: the modules.
type moduleSet struct {
	files   map[string]string // by canonical name
	builtin map[string]bool
	// depends reads from a module's file which others it needs.
	depends func(file string) ([]string, error)
}

// canonicalModule is a module's name as the kernel knows it: files may have
// '-' where the module has '_'.
func canonicalModule(file string) string {
	return strings.ReplaceAll(strings.TrimSuffix(filepath.Base(file), ".ko"), "-", "_")
}

// findModules reads the directory of one kernel release.
func findModules(dir string) (*moduleSet, error) {
	s := &moduleSet{files: map[string]string{}, builtin: map[string]bool{}, depends: readDepends}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && strings.HasSuffix(path, ".ko") {
			s.files[canonicalModule(path)] = path
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("kernel modules: %w", err)
	}
	data, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil {
		return nil, fmt.Errorf("kernel modules: %w", err)
	}
	for line := range strings.Lines(string(data)) {
		s.builtin[canonicalModule(strings.TrimSpace(line))] = true
	}
	return s, nil
}

// inOrder returns the files of the wanted modules and of all that they need,
// each after what it needs itself. Modules that the kernel has built in are
// left out.
func (s *moduleSet) inOrder(wanted []string) ([]string, error) {
	var order []string
	done := map[string]bool{}
	var add func(name string, trail []string) error
	add = func(name string, trail []string) error {
		if done[name] || s.builtin[name] {
			return nil
		}
		file, ok := s.files[name]
		if !ok {
			return fmt.Errorf("kernel module %s: not in the kernel's package", strings.Join(append(trail, name), " → "))
		}
		// Marked before its dependencies are: a cycle, which the kernel's build
		// excludes, would otherwise not end.
		done[name] = true
		depends, err := s.depends(file)
		if err != nil {
			return err
		}
		for _, dep := range depends {
			if err := add(dep, append(trail, name)); err != nil {
				return err
			}
		}
		order = append(order, file)
		return nil
	}
	for _, name := range wanted {
		if err := add(canonicalModule(name), nil); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// readDepends finds a module's dependencies in its .modinfo section, which
// holds NUL-terminated "key=value" strings (the kernel's
// include/linux/moduleparam.h and scripts/mod/modpost.c). Soft dependencies
// are not followed: they are optional, and often name aliases.
func readDepends(file string) ([]string, error) {
	f, err := elf.Open(file)
	if err != nil {
		return nil, fmt.Errorf("kernel module %s: %w", file, err)
	}
	defer f.Close()
	section := f.Section(".modinfo")
	if section == nil {
		return nil, fmt.Errorf("kernel module %s: no .modinfo section", file)
	}
	data, err := section.Data()
	if err != nil {
		return nil, fmt.Errorf("kernel module %s: %w", file, err)
	}
	return parseDepends(string(data)), nil
}

func parseDepends(modinfo string) []string {
	var names []string
	for field := range strings.SplitSeq(modinfo, "\x00") {
		list, ok := strings.CutPrefix(field, "depends=")
		if !ok || list == "" {
			continue
		}
		for name := range strings.SplitSeq(list, ",") {
			names = append(names, canonicalModule(name))
		}
	}
	return names
}
