package bundle

import (
	"cmp"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto"
)

const devShm = "/dev/shm"

// isPod is true for the container that stands for its pod: CRI's pause.
func (t *translation) isPod() bool {
	return t.pod.ID != "" && t.spec.Annotations[annotationContainerType] == containerTypeSandbox
}

// podNamespace is where the guest has the pod's namespace of a type, empty for a
// type that containers of a pod do not share.
func (t *translation) podNamespace(typ specs.LinuxNamespaceType) string {
	switch typ {
	case specs.NetworkNamespace:
		return agentproto.SandboxNetNS
	case specs.IPCNamespace:
		return agentproto.SandboxIPCNS
	case specs.UTSNamespace:
		return agentproto.SandboxUTSNS
	case specs.PIDNamespace:
		return cmp.Or(t.pod.PIDNS, agentproto.SandboxPIDNS)
	}
	return ""
}

// mountPodShm makes the pod's /dev/shm of a container's, and reports whether it
// did. It does where the container shares the pod's IPC namespace, as POSIX
// shared memory is the other half of that, unless something of the user's is
// mounted there. What containerd's CRI plugin makes on the host for a pod without
// the Sandbox API is SANDBOX/shm; memory of the host's could not be shared.
func (t *translation) mountPodShm(m *specs.Mount) bool {
	ours := !isBind(m) && m.Type == "tmpfs" || isBind(m) && strings.HasSuffix(m.Source, path.Join("/", t.pod.ID, "shm"))
	if path.Clean(m.Destination) != devShm || !ours || !t.sharesIPC() {
		return false
	}
	m.Type, m.Source = "bind", agentproto.SandboxShm
	m.Options = slices.DeleteFunc(slices.Clone(m.Options), func(o string) bool {
		return o == "bind" || strings.HasPrefix(o, "size=") || strings.HasPrefix(o, "mode=")
	})
	if !slices.Contains(m.Options, "rbind") {
		m.Options = append(m.Options, "rbind")
	}
	return true
}

func (t *translation) sharesIPC() bool {
	return t.isPod() || t.pod.ID != "" && slices.ContainsFunc(t.spec.Linux.Namespaces, func(ns specs.LinuxNamespace) bool {
		return ns.Type == specs.IPCNamespace && ns.Path != ""
	})
}

// mountPodFiles mounts the sandbox's files where the container has none of its
// own, to be written to unless its root is read-only: as containerd does with
// those that it makes on the host for pods of runc's.
func mountPodFiles(t *translation) error {
	for _, at := range t.pod.Files {
		taken := slices.ContainsFunc(t.spec.Mounts, func(m specs.Mount) bool { return path.Clean(m.Destination) == at })
		if taken {
			continue
		}
		mode := "rw"
		if t.spec.Root.Readonly {
			mode = "ro"
		}
		t.spec.Mounts = append(t.spec.Mounts, specs.Mount{
			Destination: at,
			Type:        "bind",
			Source:      agentproto.SandboxFile(path.Base(at)),
			Options:     []string{"rbind", "rprivate", mode},
		})
	}
	return nil
}
