package build

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// What is in the initramfs beside the agent.
var (
	// program is the container runtime that the agent starts.
	program = struct{ from, to string }{"usr/bin/crun", "bin/crun"}

	// modules are the kernel modules that the agent loads at its start. Each
	// costs every boot a little, so none is here that nothing uses.
	modules = []string{
		"virtio_pci",
		"virtio_net", // the link
		"virtio_blk", // disks
		"virtio_rng",
		"9p", // root file systems and volumes
		"9pnet_fd",
		"bridge",                     // for containers that may configure networks
		"vmw_vsock_virtio_transport", // the link, where the host has vsock
	}

	// mountPoints are the directories that the agent mounts file systems on.
	mountPoints = map[string]uint32{
		"dev": 0o755, "proc": 0o555, "run": 0o755, "sys": 0o555, "tmp": 0o1777,
	}
)

const (
	agentPath = "init"
	moduleDir = "lib/modules"
	// moduleList has the modules' absolute paths, one on a line, in the order
	// in which they have to be loaded.
	moduleList = "etc/modules.list"
)

// base is the part of an image that comes from packages: all but the agent.
type base struct {
	release string
	kernel  []byte
	archive []byte // cpio
}

// assemble makes the base from the unpacked packages in root. A kernel of our
// own has no modules.
func assemble(ctx context.Context, root string, own *ownKernel) (*base, error) {
	t := tree{}
	for name, perm := range mountPoints {
		t.dir(name, perm)
	}
	if err := addProgram(t, root, program.from, program.to); err != nil {
		return nil, err
	}
	if own != nil {
		return &base{release: own.release, kernel: own.data, archive: t.bytes()}, nil
	}

	release, err := kernelRelease(root)
	if err != nil {
		return nil, err
	}
	image, err := os.ReadFile(filepath.Join(root, kernelFile+release))
	if err != nil {
		return nil, fmt.Errorf("kernel: %w", err)
	}
	kernel, err := extractKernel(ctx, image)
	if err != nil {
		return nil, err
	}
	if err := addModules(t, filepath.Join(root, moduleDir, release)); err != nil {
		return nil, err
	}
	return &base{release: release, kernel: kernel, archive: t.bytes()}, nil
}

const kernelFile = "boot/vmlinuz-"

// kernelRelease returns the release of the only kernel in root.
func kernelRelease(root string) (string, error) {
	found, err := filepath.Glob(filepath.Join(root, kernelFile+"*"))
	if err != nil {
		return "", fmt.Errorf("kernel: %w", err)
	}
	if len(found) != 1 {
		return "", fmt.Errorf("the lock file's packages have %d kernels, want one", len(found))
	}
	return strings.TrimPrefix(filepath.Base(found[0]), path.Base(kernelFile)), nil
}

// agentArchive is a cpio archive with the agent as /init. The kernel unpacks
// archives that follow each other in one initramfs one after the other, so a
// new agent does not need a new base.
func agentArchive(agent []byte) ([]byte, error) {
	links, err := readLinkage(bytes.NewReader(agent))
	if err != nil {
		return nil, fmt.Errorf("agent: %w", err)
	}
	if links.interpreter != "" || len(links.needed) > 0 {
		return nil, errors.New("agent: it is linked dynamically; build it with CGO_ENABLED=0")
	}
	t := tree{}
	t.file(agentPath, 0o755, agent)
	return t.bytes(), nil
}

func addModules(t tree, dir string) error {
	set, err := findModules(dir)
	if err != nil {
		return err
	}
	files, err := set.inOrder(modules)
	if err != nil {
		return err
	}
	var list bytes.Buffer
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("kernel module: %w", err)
		}
		name := path.Join(moduleDir, filepath.Base(file))
		t.file(name, 0o644, data)
		fmt.Fprintln(&list, "/"+name)
	}
	t.file(moduleList, 0o644, list.Bytes())
	return nil
}
