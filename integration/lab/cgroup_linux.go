package lab

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// cgroupDrain bounds how long a cgroup may stay busy after the last process in
// it was killed.
const cgroupDrain = 5 * time.Second

// removeCgroups removes the cgroup of this name, and what is below it, from
// every hierarchy. The runtimes that a killed lab ran could not do it.
func removeCgroups(name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), cgroupDrain)
	defer cancel()
	dirs, err := cgroupDirs(name)
	if err != nil {
		return err
	}
	var errs []error
	for _, dir := range dirs {
		errs = append(errs, Eventually(ctx, func() error { return removeCgroup(dir) }))
	}
	return errors.Join(errs...)
}

// cgroupDirs lists the directories of the cgroup of this name in all mounted
// hierarchies.
func cgroupDirs(name string) ([]string, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return nil, err
	}
	var dirs []string
	for _, m := range mounts {
		dir := filepath.Join(m.Mountpoint, name)
		if _, err := os.Stat(dir); err == nil {
			dirs = append(dirs, dir)
		}
	}
	return dirs, nil
}

// removeCgroup removes a cgroup and its children: cgroupfs knows no recursive
// removal, and its files cannot be unlinked.
func removeCgroup(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeCgroup(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return unix.Rmdir(dir)
}
