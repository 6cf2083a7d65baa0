package lab

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// enterCgroups gives the calling thread, and what it starts, a root of its own in
// every cgroup hierarchy: a cgroup of this name, which whoever waits outside
// removes with all that is below it. Runtimes take their paths from the root,
// so that two worlds never share one.
//
// The thread has to stay locked: only it is in the new namespace.
func enterCgroups(name string) error {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return err
	}
	for _, m := range mounts {
		dir := filepath.Join(m.Mountpoint, name)
		if err := join(m, dir); err != nil {
			return fmt.Errorf("cgroup %s of %s: %w", name, m.Mountpoint, err)
		}
		if err := keepNice(dir); err != nil {
			return fmt.Errorf("cgroup %s of %s: %w", name, m.Mountpoint, err)
		}
	}
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("new cgroup namespace: %w", err)
	}
	for _, m := range mounts {
		// What is there shows the outside's root, and refuses another above it.
		if err := unix.Unmount(m.Mountpoint, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", m.Mountpoint, err)
		}
		if err := unix.Mount(m.Source, m.Mountpoint, m.FSType, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, hierarchy(m)); err != nil {
			return fmt.Errorf("mount %s: %w", m.Mountpoint, err)
		}
		// A v2 cgroup with processes gives its children no controllers.
		if m.FSType == "cgroup2" {
			if err := join(m, filepath.Join(m.Mountpoint, "init")); err != nil {
				return err
			}
		}
	}
	return nil
}

// join makes a cgroup and moves this process into it.
func join(m *mountinfo.Info, dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	// A cpuset of v1 begins empty, and takes no process before it has some.
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		data, err := os.ReadFile(filepath.Join(filepath.Dir(dir), file))
		if errors.Is(err, os.ErrNotExist) || m.FSType == "cgroup2" {
			continue
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, file), data, 0)
		}
		if err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0)
}

// keepNice has a world of version 1 be as nice to what is outside of it as the
// process that makes it: within a group the kernel compares processes with each
// other, and the group as a whole is as any other process (sched(7), autogroup
// has the same).
func keepNice(dir string) error {
	shares := filepath.Join(dir, "cpu.shares")
	if _, err := os.Stat(shares); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	// getpriority(2): the system call's answer is 20 less the value.
	raw, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
	if err != nil {
		return os.NewSyscallError("getpriority", err)
	}
	// The same steps as between nice values (kernel/sched/core.c,
	// sched_prio_to_weight), within what is allowed.
	weight := 1024 * math.Pow(1.25, float64(raw-20))
	return os.WriteFile(shares, []byte(strconv.Itoa(int(min(max(weight, 2), 1<<18)))), 0)
}

// hierarchy are the mount options that say which hierarchy m is: its controllers
// or its name (cgroups(7)).
func hierarchy(m *mountinfo.Info) string {
	if m.FSType == "cgroup2" {
		return ""
	}
	options := slices.DeleteFunc(strings.Split(m.VFSOptions, ","), func(o string) bool {
		return o == "rw" || o == "ro" || strings.HasPrefix(o, "release_agent=")
	})
	if slices.ContainsFunc(options, func(o string) bool { return strings.HasPrefix(o, "name=") }) {
		options = append(options, "none")
	}
	return strings.Join(slices.Compact(options), ",")
}
