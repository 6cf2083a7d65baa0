//go:build linux

package agent

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const (
	// imageRuntime is the OCI runtime in the guest image.
	imageRuntime = "/bin/crun"
	// runtimeDir is where it is run from.
	runtimeDir = "/run/runtime"
)

// settleRuntime moves the OCI runtime to a file system of its own, which nobody
// can write to.
//
// crun protects itself from what it runs (CVE-2019-5736): unless its file is out
// of reach already, each start copies it to a sealed file in memory, and starts
// that. A read-only file system is out of reach, but not a tmpfs, as the
// initramfs is one: its files are taken for files in memory that lack the seals
// (cloned_binary.c, is_self_cloned).
func settleRuntime(from, dir string) error {
	err := func() error {
		program, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return err
		}
		if err := unix.Mount("ramfs", dir, "ramfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0711"); err != nil {
			return &os.PathError{Op: "mount ramfs", Path: dir, Err: err}
		}
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(from)), program, 0o555); err != nil {
			return err
		}
		if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV, ""); err != nil {
			return &os.PathError{Op: "remount", Path: dir, Err: err}
		}
		return os.Remove(from)
	}()
	if err != nil {
		return fmt.Errorf("runtime: %w", err)
	}
	return nil
}
