// Package bundle turns a bundle that containerd wrote for this host into one
// for the guest.
//
// The OCI spec speaks of host paths, host namespaces and host hardware. Each
// transformer below looks at one of these: it rewrites its part of the spec
// for the guest, adds what the host must do for it (a tree to share), and
// refuses what cannot be had in a guest. What is meaningless in a guest but
// harmless to lose is dropped and named in Guest.Ignored; nothing is dropped in
// silence.
package bundle

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// Guest is a bundle as the guest gets it.
type Guest struct {
	// Spec is the rewritten spec.
	Spec *specs.Spec
	// Shares are the host trees that the guest must mount before it runs the
	// bundle: the root filesystem.
	Shares []Share
	// Volumes are the host trees that the spec's mounts are of. They have to be
	// mounted as agentproto.VolumeDir(Name) has it; each is named once.
	Volumes []Volume
	// NetNS is the host's network namespace that the spec wants the container in,
	// empty for none.
	NetNS string
	// Hooks are those that the host runs: they are no longer in Spec.
	Hooks specs.Hooks
	// Ignored names what the host's spec asked for that has no meaning in a
	// guest.
	Ignored []string
}

// Share is a host tree that belongs to a bundle.
type Share struct {
	// Source is the host path.
	Source string
	// Target is where the guest mounts it, relative to the bundle's directory.
	Target string
	// Exclusive is true if nothing but this guest changes the tree while it is
	// shared, so that the guest may cache it.
	Exclusive bool
}

// Volume is a host file or tree that bundles of one machine may have in common.
type Volume struct {
	// Name is the same for the same file or tree under the same path, and a
	// different one if that has been replaced. It says nothing of the path.
	Name string
	// Source is the host path.
	Source string
	// SingleFile is true if Source is a regular file. The guest is given a
	// directory that holds just this file, under the base name of Source.
	SingleFile bool
	// ReadOnly is enforced where the volume is served, on the host.
	ReadOnly bool
	// Slave: what the host mounts below Source later is seen. Otherwise it is
	// not.
	Slave bool
}

// Load reads the spec of the bundle in dir. A missing file is
// errdefs.ErrNotFound, a malformed one errdefs.ErrInvalidArgument.
func Load(dir string) (*specs.Spec, error) {
	path := filepath.Join(dir, "config.json")
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("bundle: no %s: %w", path, errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("bundle: %w", err)
	}
	var spec specs.Spec
	if err := json.Unmarshal(data, &spec); err != nil {
		return nil, fmt.Errorf("bundle: malformed %s: %w: %w", path, err, errdefs.ErrInvalidArgument)
	}
	return &spec, nil
}

// Pod is what the sandbox of a container is to it.
type Pod struct {
	// ID is the sandbox's, empty for a container that has a machine to itself.
	ID string
	// PIDNS is the PID namespace, in the guest, of a container that asks for the
	// pod's; empty for agentproto.SandboxPIDNS.
	PIDNS string
	// Files are where a container finds the files that the sandbox has for all
	// of its containers: "/etc/hosts". A mount of the container's own goes first.
	Files []string
}

// translation is the work in progress that transformers share.
type translation struct {
	id     string
	pod    Pod
	rootfs string
	spec   *specs.Spec
	guest  *Guest
}

// transformers run in this order; each is documented where it stands.
var transformers = []func(*translation) error{
	checkForm,
	checkAnnotations,
	translateHooks,
	translateFreeBSD,
	translateRoot,
	translateMounts,
	mountPodFiles,
	translateNamespaces,
	translateCgroup,
	translateDevices,
	translateSecurity,
	translateUnknown,
}

// Translate makes the guest's bundle for container id of a pod from the host's
// spec. rootfs is the host path at which the root filesystem is mounted. The spec is
// rewritten in place. Errors are errdefs.ErrInvalidArgument for what is wrong
// and errdefs.ErrNotImplemented for what is legal but not supported, and name
// the field.
func Translate(id string, pod Pod, spec *specs.Spec, rootfs string) (*Guest, error) {
	t := &translation{id: id, pod: pod, rootfs: rootfs, spec: spec, guest: &Guest{Spec: spec}}
	for _, f := range transformers {
		if err := f(t); err != nil {
			return nil, fmt.Errorf("bundle of %s: %w", id, err)
		}
	}
	return t.guest, nil
}

func (t *translation) ignore(format string, args ...any) {
	t.guest.Ignored = append(t.guest.Ignored, fmt.Sprintf(format, args...))
}

// checkForm refuses specs that no Linux guest can run, before anything has
// been done for them.
func checkForm(t *translation) error {
	switch {
	case t.spec.Root == nil:
		return fmt.Errorf("no root: %w", errdefs.ErrInvalidArgument)
	case t.spec.Process == nil || len(t.spec.Process.Args) == 0:
		return fmt.Errorf("no process.args: %w", errdefs.ErrInvalidArgument)
	case t.spec.Linux == nil:
		return fmt.Errorf("no linux section, so this spec is for another platform (ctr: --platform linux/amd64): %w", errdefs.ErrInvalidArgument)
	}
	return nil
}
