package bundle

import (
	"fmt"
	"path"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto"
)

// translateNamespaces puts the container into the sandbox's network namespace,
// whether the spec asks for a new one or for the host's: the guest's root
// namespace holds the link and is out of a container's reach. Other namespaces
// are made new in the guest; one that names a namespace of the host by its path
// cannot be joined from a guest.
func translateNamespaces(t *translation) error {
	network := specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: agentproto.SandboxNetNS}
	namespaces := []specs.LinuxNamespace{network}
	for _, ns := range t.spec.Linux.Namespaces {
		if ns.Path != "" {
			return fmt.Errorf("linux.namespaces: %s namespace %s of the host: %w", ns.Type, ns.Path, errdefs.ErrNotImplemented)
		}
		if ns.Type != specs.NetworkNamespace {
			namespaces = append(namespaces, ns)
		}
	}
	t.spec.Linux.Namespaces = namespaces
	return nil
}

// translateCgroup gives the container a place in the guest's cgroup tree and
// drops those limits that are about the host's hardware. Everything else, such
// as memory and CPU limits, holds in the guest.
func translateCgroup(t *translation) error {
	l := t.spec.Linux
	// systemd writes slice:prefix:name; the guest has no systemd.
	if slice, rest, ok := strings.Cut(l.CgroupsPath, ":"); ok {
		prefix, name, _ := strings.Cut(rest, ":")
		l.CgroupsPath = path.Join(slice, prefix+"-"+name)
	}
	if l.CgroupsPath == "" {
		l.CgroupsPath = t.id
	}
	l.CgroupsPath = path.Join("/", l.CgroupsPath)

	r := l.Resources
	if r == nil {
		return nil
	}
	if r.CPU != nil && (r.CPU.Cpus != "" || r.CPU.Mems != "") {
		t.ignore("linux.resources.cpu.cpus and mems (the host's numbering)")
		r.CPU.Cpus, r.CPU.Mems = "", ""
	}
	if r.BlockIO != nil {
		t.ignore("linux.resources.blockIO (the host's devices)")
		r.BlockIO = nil
	}
	if len(r.HugepageLimits) > 0 {
		t.ignore("linux.resources.hugepageLimits")
		r.HugepageLimits = nil
	}
	if r.Network != nil {
		t.ignore("linux.resources.network")
		r.Network = nil
	}
	if len(r.Rdma) > 0 {
		t.ignore("linux.resources.rdma")
		r.Rdma = nil
	}
	return nil
}
