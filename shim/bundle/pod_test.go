package bundle

import (
	"slices"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// inPod translates the spec of a container in a pod.
func inPod(t *testing.T, pod Pod, spec *specs.Spec) *Guest {
	t.Helper()
	g, err := Translate("c1", pod, spec, "/host/rootfs")
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func namespaces(t *testing.T, g *Guest) map[specs.LinuxNamespaceType]string {
	t.Helper()
	got := map[specs.LinuxNamespaceType]string{}
	for _, ns := range g.Spec.Linux.Namespaces {
		if _, twice := got[ns.Type]; twice {
			t.Errorf("%s twice", ns.Type)
		}
		got[ns.Type] = ns.Path
	}
	return got
}

func mountAt(g *Guest, at string) specs.Mount {
	i := slices.IndexFunc(g.Spec.Mounts, func(m specs.Mount) bool { return m.Destination == at })
	if i < 0 {
		return specs.Mount{}
	}
	return g.Spec.Mounts[i]
}

func TestNamespacesOfAPod(t *testing.T) {
	member := []specs.LinuxNamespace{
		{Type: specs.MountNamespace},
		{Type: specs.NetworkNamespace, Path: "/proc/99/ns/net"},
		{Type: specs.IPCNamespace, Path: "/proc/99/ns/ipc"},
		{Type: specs.UTSNamespace, Path: "/proc/99/ns/uts"},
	}
	for name, tc := range map[string]struct {
		pod  Pod
		in   []specs.LinuxNamespace
		kind string
		want map[specs.LinuxNamespaceType]string
	}{
		"a member": {Pod{ID: "pod"}, append(slices.Clone(member), specs.LinuxNamespace{Type: specs.PIDNamespace}), "container", map[specs.LinuxNamespaceType]string{
			"mount": "", "network": "/run/netns/sandbox", "ipc": "/run/sandbox/ipc", "uts": "/run/sandbox/uts", "pid": "",
		}},
		"a member that shares processes": {Pod{ID: "pod"}, append(slices.Clone(member), specs.LinuxNamespace{Type: specs.PIDNamespace, Path: "/proc/99/ns/pid"}), "container", map[specs.LinuxNamespaceType]string{
			"mount": "", "network": "/run/netns/sandbox", "ipc": "/run/sandbox/ipc", "uts": "/run/sandbox/uts", "pid": "/run/sandbox/pid",
		}},
		"a member that watches another": {Pod{ID: "pod", PIDNS: "/proc/7/ns/pid"}, append(slices.Clone(member), specs.LinuxNamespace{Type: specs.PIDNamespace, Path: "/proc/99/ns/pid"}), "container", map[specs.LinuxNamespaceType]string{
			"mount": "", "network": "/run/netns/sandbox", "ipc": "/run/sandbox/ipc", "uts": "/run/sandbox/uts", "pid": "/proc/7/ns/pid",
		}},
		"a member that shares nothing": {Pod{ID: "pod"}, []specs.LinuxNamespace{{Type: "ipc"}, {Type: "uts"}}, "", map[specs.LinuxNamespaceType]string{
			"mount": "", "network": "/run/netns/sandbox", "ipc": "", "uts": "",
		}},
		"the pod's own": {Pod{ID: "pod"}, []specs.LinuxNamespace{{Type: "mount"}, {Type: "network", Path: "/run/netns/cni-1"}, {Type: "ipc"}, {Type: "uts"}, {Type: "pid"}}, "sandbox", map[specs.LinuxNamespaceType]string{
			"mount": "", "network": "/run/netns/sandbox", "ipc": "/run/sandbox/ipc", "uts": "/run/sandbox/uts", "pid": "",
		}},
		"the pod's own with the host's everything": {Pod{ID: "pod"}, nil, "sandbox", map[specs.LinuxNamespaceType]string{
			"mount": "", "network": "/run/netns/sandbox", "ipc": "/run/sandbox/ipc", "uts": "/run/sandbox/uts",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			spec := minimal()
			spec.Linux.Namespaces = tc.in
			spec.Annotations = map[string]string{annotationContainerType: tc.kind}
			got := namespaces(t, inPod(t, tc.pod, spec))
			for typ, path := range tc.want {
				if p, ok := got[typ]; !ok || p != path {
					t.Errorf("%s is %q, %v, want %q", typ, p, ok, path)
				}
			}
			if len(got) != len(tc.want) {
				t.Errorf("namespaces are %v, want %v", got, tc.want)
			}
		})
	}
}

func TestTheNetworkNamespaceOfAPodIsRemembered(t *testing.T) {
	spec := minimal()
	spec.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.NetworkNamespace, Path: "/run/netns/cni-1"}}
	if got := inPod(t, Pod{ID: "pod"}, spec).NetNS; got != "/run/netns/cni-1" {
		t.Errorf("got %q", got)
	}
}

// Not even a pod has these in common in a guest.
func TestNamespacesThatNoPodShares(t *testing.T) {
	for _, typ := range []specs.LinuxNamespaceType{specs.UserNamespace, specs.MountNamespace, specs.CgroupNamespace} {
		spec := minimal()
		spec.Linux.Namespaces = []specs.LinuxNamespace{{Type: typ, Path: "/proc/99/ns/x"}}
		if _, err := Translate("c1", Pod{ID: "pod"}, spec, "/host/rootfs"); !errdefs.IsNotImplemented(err) {
			t.Errorf("%s: %v", typ, err)
		}
	}
}

func TestShmOfAPod(t *testing.T) {
	sharing := []specs.LinuxNamespace{{Type: specs.IPCNamespace, Path: "/proc/99/ns/ipc"}}
	volume := t.TempDir()
	for name, tc := range map[string]struct {
		pod   Pod
		ns    []specs.LinuxNamespace
		mount specs.Mount
		ours  bool
	}{
		"as every spec has it":       {Pod{ID: "pod"}, sharing, specs.Mount{Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "mode=1777", "size=65536k"}}, true},
		"as CRI makes it":            {Pod{ID: "pod"}, sharing, specs.Mount{Type: "bind", Source: "/run/x/sandboxes/pod/shm", Options: []string{"rbind", "rw"}}, true},
		"a volume":                   {Pod{ID: "pod"}, sharing, specs.Mount{Type: "bind", Source: volume, Options: []string{"rbind"}}, false},
		"with an IPC of its own":     {Pod{ID: "pod"}, []specs.LinuxNamespace{{Type: specs.IPCNamespace}}, specs.Mount{Type: "tmpfs", Source: "shm"}, false},
		"in a machine for itself":    {Pod{}, nil, specs.Mount{Type: "tmpfs", Source: "shm"}, false},
		"somewhere else in the tree": {Pod{ID: "pod"}, sharing, specs.Mount{Type: "tmpfs", Destination: "/dev/shm2"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			if tc.mount.Destination == "" {
				tc.mount.Destination = "/dev/shm"
			}
			spec := minimal()
			spec.Mounts = []specs.Mount{tc.mount}
			spec.Linux.Namespaces = tc.ns
			m := mountAt(inPod(t, tc.pod, spec), tc.mount.Destination)
			if ours := m.Source == "/run/sandbox/shm"; ours != tc.ours {
				t.Errorf("got %+v", m)
			}
			if tc.ours && (m.Type != "bind" || !slices.Contains(m.Options, "rbind") || slices.Contains(m.Options, "size=65536k")) {
				t.Errorf("got %+v", m)
			}
		})
	}
}

func TestFilesOfAPod(t *testing.T) {
	hosts := t.TempDir()
	spec := minimal()
	spec.Mounts = []specs.Mount{{Destination: "/etc/hosts", Type: "bind", Source: hosts, Options: []string{"rbind"}}}
	g := inPod(t, Pod{ID: "pod", Files: []string{"/etc/hosts", "/etc/resolv.conf"}}, spec)
	if n := len(g.Spec.Mounts); n != 2 {
		t.Errorf("%d mounts", n)
	}
	if m := mountAt(g, "/etc/resolv.conf"); m.Source != "/run/sandbox/files/resolv.conf" || !slices.Contains(m.Options, "rw") {
		t.Errorf("got %+v", m)
	}
	spec = minimal()
	spec.Root.Readonly = true
	g = inPod(t, Pod{ID: "pod", Files: []string{"/etc/hosts"}}, spec)
	if m := mountAt(g, "/etc/hosts"); !slices.Contains(m.Options, "ro") {
		t.Errorf("with a read-only root: %+v", m)
	}
}
