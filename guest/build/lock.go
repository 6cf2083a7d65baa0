package build

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
)

// Package is one line of the lock file: a Debian package, pinned.
type Package struct {
	Name string
	// Version is Debian's, with the epoch where there is one.
	Version string
	// Arch is Debian's name of the architecture.
	Arch string
	// SHA256 of the .deb file, in lower-case hexadecimal.
	SHA256 string
}

// fileName is what apt calls the package's file.
func (p Package) fileName() string {
	return fmt.Sprintf("%s_%s_%s.deb", p.Name, strings.ReplaceAll(p.Version, ":", "%3a"), p.Arch)
}

// Lock is a lock file: the packages that the image is made of, and the
// comment at the head of the file, which Update keeps.
type Lock struct {
	Comment  []string
	Packages []Package
}

// These are Debian Policy's 5.6.1 and 5.6.12. They also keep a lock file from
// naming a path or an option of apt's.
var (
	validName    = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]+$`)
	validVersion = regexp.MustCompile(`^[0-9][A-Za-z0-9.+:~-]*$`)
)

// ReadLock reads a lock file. Text that is not one is
// errdefs.ErrInvalidArgument.
func ReadLock(path string) (*Lock, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("lock file: %w", err)
	}
	l, err := parseLock(data)
	if err != nil {
		return nil, fmt.Errorf("lock file %s: %w: %w", path, err, errdefs.ErrInvalidArgument)
	}
	return l, nil
}

func parseLock(data []byte) (*Lock, error) {
	l := &Lock{}
	seen := map[string]bool{}
	scan := bufio.NewScanner(bytes.NewReader(data))
	for n := 1; scan.Scan(); n++ {
		line := strings.TrimSpace(scan.Text())
		if line == "" {
			continue
		}
		if strings.HasPrefix(line, "#") {
			if len(l.Packages) > 0 {
				return nil, fmt.Errorf("line %d: a comment below the packages", n)
			}
			l.Comment = append(l.Comment, line)
			continue
		}
		f := strings.Fields(line)
		if len(f) != 4 {
			return nil, fmt.Errorf("line %d has %d fields, want package, version, architecture, sha256", n, len(f))
		}
		p := Package{Name: f[0], Version: f[1], Arch: f[2], SHA256: f[3]}
		sum, err := hex.DecodeString(p.SHA256)
		switch {
		case !validName.MatchString(p.Name):
			return nil, fmt.Errorf("line %d: %q is not a package's name", n, p.Name)
		case !validVersion.MatchString(p.Version):
			return nil, fmt.Errorf("line %d: %q is not a version", n, p.Version)
		case p.Arch != debianArch:
			return nil, fmt.Errorf("line %d: architecture is %q, want %q", n, p.Arch, debianArch)
		case err != nil || len(sum) != 32 || p.SHA256 != strings.ToLower(p.SHA256):
			return nil, fmt.Errorf("line %d: %q is not a sha256 in lower-case hexadecimal", n, p.SHA256)
		case seen[p.Name]:
			return nil, fmt.Errorf("line %d: %s is there twice", n, p.Name)
		}
		seen[p.Name] = true
		l.Packages = append(l.Packages, p)
	}
	if err := scan.Err(); err != nil {
		return nil, err
	}
	if len(l.Packages) == 0 {
		return nil, fmt.Errorf("no packages")
	}
	return l, nil
}

// Format is the lock file's text.
func (l *Lock) Format() []byte {
	var b bytes.Buffer
	for _, c := range l.Comment {
		fmt.Fprintln(&b, c)
	}
	for _, p := range l.Packages {
		fmt.Fprintln(&b, p.Name, p.Version, p.Arch, p.SHA256)
	}
	return b.Bytes()
}

// withoutKernel is the lock without the package of a kernel.
func (l *Lock) withoutKernel() *Lock {
	return &Lock{Comment: l.Comment, Packages: slices.DeleteFunc(slices.Clone(l.Packages), func(p Package) bool {
		return strings.HasPrefix(p.Name, kernelPrefix)
	})}
}
