package bundle

import (
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// freebsdFilesystems are what containerd on FreeBSD puts into a spec in place of
// a Linux host's, for containers that share the host's kernel.
var freebsdFilesystems = []string{"devfs", "fdescfs", "linprocfs", "linsysfs"}

// guestMounts are what a container finds in a Linux guest: the mounts that
// containerd's default spec has on Linux.
var guestMounts = []specs.Mount{
	{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
	{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
	{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
	{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
	{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
	{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
	{Destination: "/run", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
}

// guestNamespaces are those of a container that a FreeBSD host's spec says
// nothing of; the network is translateNamespaces'.
var guestNamespaces = []specs.LinuxNamespaceType{
	specs.PIDNamespace, specs.IPCNamespace, specs.UTSNamespace, specs.MountNamespace,
}

// translateFreeBSD turns the spec that containerd writes on FreeBSD for a Linux
// image into what it would have written on Linux. Which host wrote a spec is
// told by the spec, so this is the same everywhere.
func translateFreeBSD(t *translation) error {
	written := false
	t.spec.Mounts = slices.DeleteFunc(t.spec.Mounts, func(m specs.Mount) bool {
		theirs := slices.Contains(freebsdFilesystems, m.Type)
		written = written || theirs
		return theirs
	})
	for i := range t.spec.Mounts {
		fromNullfs(&t.spec.Mounts[i])
	}
	if !written {
		return nil
	}
	// The guest's come first: the others may be below them.
	mounts := slices.DeleteFunc(slices.Clone(guestMounts), func(m specs.Mount) bool {
		return slices.ContainsFunc(t.spec.Mounts, func(o specs.Mount) bool { return o.Destination == m.Destination })
	})
	t.spec.Mounts = append(mounts, t.spec.Mounts...)
	if len(t.spec.Linux.Namespaces) == 0 {
		for _, typ := range guestNamespaces {
			t.spec.Linux.Namespaces = append(t.spec.Linux.Namespaces, specs.LinuxNamespace{Type: typ})
		}
	}
	return nil
}

// fromNullfs makes a bind mount of a nullfs mount, which is FreeBSD's word for
// it.
func fromNullfs(m *specs.Mount) {
	if m.Type != "nullfs" {
		return
	}
	m.Type = "bind"
	m.Options = append(slices.Clone(m.Options), "bind")
}
