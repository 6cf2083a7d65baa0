package lab

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/moby/sys/mountinfo"
	"github.com/vishvananda/netlink"
)

// stateDirs are directories of the system that nothing but the lab writes to.
var stateDirs = []string{"/run", "/dev/shm"}

// system looks at what only Linux has.
func (l *Lab) system(s Snapshot) error {
	return errors.Join(l.openPipes(s), links(s), netfilter(s), l.cgroups(s))
}

// openPipes are named pipes that containerd still holds: stdio of a task, or a
// shim's log.
func (l *Lab) openPipes(s Snapshot) error {
	dir := filepath.Join("/proc", strconv.Itoa(l.ContainerdPid()), "fd")
	fds, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, fd := range fds {
		path := filepath.Join(dir, fd.Name())
		target, err := os.Readlink(path)
		if err != nil || !strings.HasPrefix(target, "/") {
			continue
		}
		if info, err := os.Stat(path); err == nil && info.Mode()&fs.ModeNamedPipe != 0 {
			s.add("named pipe open in containerd: %s", target)
		}
	}
	return nil
}

func links(s Snapshot) error {
	all, err := netlink.LinkList()
	if err != nil {
		return err
	}
	for _, link := range all {
		s.add("network interface %s (%s)", link.Attrs().Name, link.Type())
	}
	return nil
}

func netfilter(s Snapshot) error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	tables, err := conn.ListTables()
	if err != nil {
		return err
	}
	for _, t := range tables {
		s.add("nftables table %s (family %d)", t.Name, t.Family)
		chains, err := conn.ListChainsOfTableFamily(t.Family)
		if err != nil {
			return err
		}
		for _, c := range chains {
			if c.Table.Name == t.Name {
				s.add("nftables chain %s in table %s", c.Name, t.Name)
			}
		}
	}
	return nil
}

// cgroups are those of the world but for the containerd namespaces' own.
func (l *Lab) cgroups(s Snapshot) error {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return err
	}
	for _, m := range mounts {
		for _, pattern := range []string{"*", "*/*"} {
			dirs, err := filepath.Glob(filepath.Join(m.Mountpoint, pattern, "cgroup.procs"))
			if err != nil {
				return err
			}
			for _, file := range dirs {
				if dir := filepath.Dir(file); !slices.Contains([]string{l.Namespace, CRINamespace}, filepath.Base(dir)) {
					s.add("cgroup %s", dir)
				}
			}
		}
	}
	return nil
}
