package bundle

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto"
)

// guestFilesystems are the mount types that the guest's own kernel provides.
var guestFilesystems = []string{"proc", "sysfs", "tmpfs", "devpts", "devtmpfs", "mqueue", "cgroup", "cgroup2"}

// translateRoot shares the root filesystem and points the spec at where the
// guest mounts it. The share stays writable even under root.readonly: the
// guest's runtime makes mount points in it before it remounts it read-only.
func translateRoot(t *translation) error {
	t.guest.Shares = append(t.guest.Shares, Share{
		Source:    t.rootfs,
		Target:    agentproto.RootfsTarget,
		Exclusive: true,
	})
	t.spec.Root.Path = agentproto.RootfsDir(t.id)
	return nil
}

// translateMounts shares the source of each bind mount. Other mounts are made
// by the guest from its own kernel's file systems.
func translateMounts(t *translation) error {
	for i := range t.spec.Mounts {
		m := &t.spec.Mounts[i]
		if t.mountPodShm(m) {
			continue
		}
		if !isBind(m) {
			if !slices.Contains(guestFilesystems, m.Type) {
				return fmt.Errorf("mount at %s: type %q is not one that a guest can make: %w", m.Destination, m.Type, errdefs.ErrInvalidArgument)
			}
			continue
		}
		if err := t.shareBind(m); err != nil {
			return fmt.Errorf("mount at %s: %w", m.Destination, err)
		}
	}
	return nil
}

func isBind(m *specs.Mount) bool {
	return m.Type == "bind" || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind")
}

func (t *translation) shareBind(m *specs.Mount) error {
	readOnly, slave := false, false
	for _, o := range m.Options {
		switch o {
		case "ro", "rro":
			readOnly = true
		case "rw":
			readOnly = false
		case "slave", "rslave":
			slave = true
		case "private", "rprivate":
			slave = false
		case "shared", "rshared", "unbindable", "runbindable":
			return fmt.Errorf("propagation %q: a mount made in a guest cannot appear on the host: %w", o, errdefs.ErrNotImplemented)
		case "idmap", "ridmap":
			return fmt.Errorf("option %q: %w", o, errdefs.ErrNotImplemented)
		}
	}
	if len(m.UIDMappings) > 0 || len(m.GIDMappings) > 0 {
		return fmt.Errorf("mapped owners: %w", errdefs.ErrNotImplemented)
	}
	source := m.Source
	if !filepath.IsAbs(source) {
		return fmt.Errorf("source %q is not an absolute path: %w", source, errdefs.ErrInvalidArgument)
	}
	st, err := os.Stat(source)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("source %s: %w", source, errdefs.ErrNotFound)
	}
	if err != nil {
		return fmt.Errorf("source: %w", err)
	}
	if !st.IsDir() && !st.Mode().IsRegular() {
		return fmt.Errorf("source %s is neither a directory nor a regular file (%v); only those can be shared with a guest: %w",
			source, st.Mode().Type(), errdefs.ErrInvalidArgument)
	}
	v := Volume{Source: filepath.Clean(source), SingleFile: !st.IsDir(), ReadOnly: readOnly, Slave: slave}
	v.Name = v.name(st)
	if !slices.Contains(t.guest.Volumes, v) {
		t.guest.Volumes = append(t.guest.Volumes, v)
	}
	m.Source = agentproto.VolumeDir(v.Name)
	if v.SingleFile {
		m.Source = filepath.Join(m.Source, filepath.Base(source))
	}
	return nil
}

// name makes a name of what tells volumes apart. A tree that is served
// read-only is another than the same tree served to be written to, and one that
// mounts of the host appear in another than one that they do not.
func (v Volume) name(st fs.FileInfo) string {
	var dev, ino uint64
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		dev, ino = uint64(sys.Dev), uint64(sys.Ino)
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %d %d %t %t %t", v.Source, dev, ino, v.SingleFile, v.ReadOnly, v.Slave))
	return fmt.Sprintf("v-%x", sum[:12])
}
