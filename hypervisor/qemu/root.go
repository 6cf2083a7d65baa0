//go:build linux

package qemu

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// root is the root directory of QEMU's process: a directory that is removed once
// QEMU is in it. Such a directory is empty for ever, as not even root can make
// anything in it (rmdir(2), unlink(2)).
//
// The process stands for its containers on the host, and there are clients that
// copy files to and from a container by way of /proc/PID/root, where they would
// find those of the host. See docs/decisions/0031-files-of-a-running-container.md.
type root struct{ dir string }

func (r root) path() string { return filepath.Join(r.dir, "root") }

func (r root) make() error {
	if err := os.Mkdir(r.path(), 0o700); !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

func (r root) remove() error {
	if err := os.Remove(r.path()); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// rootArgs have QEMU change to its root when it has opened everything and before
// the machine runs. The option has had two names (docs/about/deprecated.rst).
func rootArgs(path string, v version) []string {
	if v.before(version{8, 1}) {
		return []string{"-chroot", path}
	}
	// A comma in a value is written twice.
	return []string{"-run-with", "chroot=" + strings.ReplaceAll(path, ",", ",,")}
}

// version is that of the QEMU that is installed.
type version struct{ major, minor int }

func (v version) before(w version) bool {
	return v.major < w.major || v.major == w.major && v.minor < w.minor
}

// versionTimeout bounds the question for it.
const versionTimeout = 10 * time.Second

var known struct {
	sync.Mutex
	version *version
}

// installed asks QEMU for its version, until it has answered once.
func installed(ctx context.Context) (version, error) {
	known.Lock()
	defer known.Unlock()
	if known.version != nil {
		return *known.version, nil
	}
	ctx, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, program, "-version").Output()
	if err != nil {
		return version{}, fmt.Errorf("version of %s: %w", program, err)
	}
	v, err := parseVersion(string(out))
	if err == nil {
		known.version = &v
	}
	return v, err
}

func parseVersion(said string) (v version, err error) {
	_, rest, _ := strings.Cut(said, "version ")
	if _, err := fmt.Sscanf(rest, "%d.%d", &v.major, &v.minor); err != nil {
		return version{}, fmt.Errorf("version of %s in %q: %w", program, said, err)
	}
	return v, nil
}
