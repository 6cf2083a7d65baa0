package bundle

import (
	"fmt"
	"path"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto"
)

// translateNamespaces puts the container into the machine's network namespace
// for containers, whatever the spec asks for: the guest's root namespace holds
// the link and is out of a container's reach. A namespace of the host's is where
// the machine's interface comes from.
//
// A spec has nothing but paths on the host to say that a container of a pod
// shares the pod's IPC, UTS or PID namespace. Such a path cannot be followed
// from a guest, and need not be: it becomes that of the pod's in the guest. The
// container that stands for a pod itself is in the pod's IPC and UTS namespaces.
// Namespaces without a path are made new in the guest, and those that are not
// named at all are the machine's.
func translateNamespaces(t *translation) error {
	namespaces := []specs.LinuxNamespace{{Type: specs.NetworkNamespace, Path: agentproto.SandboxNetNS}}
	mount := false
	for _, ns := range t.spec.Linux.Namespaces {
		shared := t.podNamespace(ns.Type)
		switch {
		case ns.Type == specs.NetworkNamespace:
			t.guest.NetNS = ns.Path
			continue
		case ns.Path != "" && (t.pod.ID == "" || shared == ""):
			return fmt.Errorf("linux.namespaces: %s namespace %s of the host: %w", ns.Type, ns.Path, errdefs.ErrNotImplemented)
		case t.isPod() && (ns.Type == specs.IPCNamespace || ns.Type == specs.UTSNamespace):
			continue
		case ns.Path != "":
			ns.Path = shared
		}
		mount = mount || ns.Type == specs.MountNamespace
		namespaces = append(namespaces, ns)
	}
	if t.isPod() {
		for _, typ := range []specs.LinuxNamespaceType{specs.IPCNamespace, specs.UTSNamespace} {
			namespaces = append(namespaces, specs.LinuxNamespace{Type: typ, Path: t.podNamespace(typ)})
		}
	}
	if !mount {
		namespaces = append(namespaces, specs.LinuxNamespace{Type: specs.MountNamespace})
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
	l.CgroupsPath = path.Join(agentproto.SandboxCgroup, path.Join("/", l.CgroupsPath))

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
