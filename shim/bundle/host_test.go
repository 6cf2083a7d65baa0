package bundle

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestNamespaces(t *testing.T) {
	for name, in := range map[string][]specs.LinuxNamespace{
		"a network of its own": {{Type: specs.PIDNamespace}, {Type: specs.NetworkNamespace}, {Type: specs.MountNamespace}},
		"the host's network":   {{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}},
	} {
		t.Run(name, func(t *testing.T) {
			spec := minimal()
			spec.Linux.Namespaces = in
			got := map[specs.LinuxNamespaceType]string{}
			for _, ns := range translate(t, spec).Spec.Linux.Namespaces {
				if _, twice := got[ns.Type]; twice {
					t.Errorf("%s twice", ns.Type)
				}
				got[ns.Type] = ns.Path
			}
			if got[specs.NetworkNamespace] != "/run/netns/sandbox" {
				t.Errorf("network namespace is %q: the container would see the link", got[specs.NetworkNamespace])
			}
			for _, typ := range []specs.LinuxNamespaceType{specs.PIDNamespace, specs.MountNamespace} {
				if path, ok := got[typ]; !ok || path != "" {
					t.Errorf("%s: %q, %v", typ, path, ok)
				}
			}
			if len(got) != 3 {
				t.Errorf("namespaces are %v", got)
			}
		})
	}
	t.Run("network of the host by path", func(t *testing.T) {
		spec := minimal()
		spec.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.NetworkNamespace, Path: "/run/netns/x"}}
		guest := translate(t, spec)
		if guest.NetNS != "/run/netns/x" || guest.Spec.Linux.Namespaces[0].Path != "/run/netns/sandbox" {
			t.Errorf("the interface comes from %q, the container is in %+v", guest.NetNS, guest.Spec.Linux.Namespaces)
		}
	})
	for _, typ := range []specs.LinuxNamespaceType{specs.PIDNamespace, specs.IPCNamespace, specs.UserNamespace} {
		t.Run(string(typ)+" of the host by path", func(t *testing.T) {
			spec := minimal()
			spec.Linux.Namespaces = []specs.LinuxNamespace{{Type: typ, Path: "/proc/1/ns/x"}}
			refused(t, spec, errdefs.IsNotImplemented, string(typ), "/proc/1/ns/x")
		})
	}
}

func TestCgroupPath(t *testing.T) {
	for in, want := range map[string]string{
		"":                                       "/sandbox/c1",
		"/default/c1":                            "/sandbox/default/c1",
		"default/c1":                             "/sandbox/default/c1",
		"../../../etc":                           "/sandbox/etc",
		"/../..":                                 "/sandbox",
		"system.slice:cri-containerd:0123":       "/sandbox/system.slice/cri-containerd-0123",
		"kubepods-pod1.slice:cri-containerd:abc": "/sandbox/kubepods-pod1.slice/cri-containerd-abc",
	} {
		spec := minimal()
		spec.Linux.CgroupsPath = in
		if got := translate(t, spec).Spec.Linux.CgroupsPath; got != want {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
	}
}

func TestResources(t *testing.T) {
	limit, weight, quota, shares := int64(64<<20), uint16(100), int64(50000), uint64(512)
	spec := minimal()
	spec.Linux.Resources = &specs.LinuxResources{
		Memory:         &specs.LinuxMemory{Limit: &limit},
		CPU:            &specs.LinuxCPU{Quota: &quota, Shares: &shares, Cpus: "12-15", Mems: "1"},
		Pids:           &specs.LinuxPids{Limit: &limit},
		BlockIO:        &specs.LinuxBlockIO{Weight: &weight},
		HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 1}},
		Network:        &specs.LinuxNetwork{},
		Rdma:           map[string]specs.LinuxRdma{"mlx5": {}},
	}
	g := translate(t, spec)
	r := g.Spec.Linux.Resources
	if *r.Memory.Limit != limit || *r.CPU.Quota != quota || *r.CPU.Shares != shares || *r.Pids.Limit != limit {
		t.Errorf("limits that hold in a guest were changed: %+v", r)
	}
	if r.CPU.Cpus != "" || r.CPU.Mems != "" || r.BlockIO != nil || r.HugepageLimits != nil || r.Network != nil || r.Rdma != nil {
		t.Errorf("the host's hardware is still in %+v", r)
	}
	for _, word := range []string{"cpus", "blockIO", "hugepageLimits", "network", "rdma"} {
		ignored(t, g, word)
	}
}

func TestDevicesOfAPrivilegedContainer(t *testing.T) {
	spec := minimal()
	keep := []specs.LinuxDevice{
		{Path: "/dev/mem", Type: "c", Major: 1, Minor: 1},
		{Path: "/dev/null", Type: "c", Major: 1, Minor: 3},
		{Path: "/dev/tty", Type: "c", Major: 5, Minor: 0},
		{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229},
		{Path: "/dev/net/tun", Type: "u", Major: 10, Minor: 200},
		{Path: "/dev/pipe", Type: "p"},
	}
	drop := []specs.LinuxDevice{
		{Path: "/dev/sda", Type: "b", Major: 8, Minor: 0},
		{Path: "/dev/ram0", Type: "b", Major: 1, Minor: 0},
		{Path: "/dev/nvidia0", Type: "c", Major: 195, Minor: 0},
		{Path: "/dev/ttyS0", Type: "c", Major: 4, Minor: 64},
		{Path: "/dev/ptmx0", Type: "c", Major: 136, Minor: 0},
		{Path: "/dev/dynamic", Type: "c", Major: 10, Minor: 260},
	}
	// Interleaved, so that removing one must not skip its neighbour.
	for i := range keep {
		spec.Linux.Devices = append(spec.Linux.Devices, drop[i], keep[i])
	}
	spec.Linux.Devices = append(spec.Linux.Devices, specs.LinuxDevice{Path: "/dev/sdb", Type: "b", Major: 8, Minor: 16}, specs.LinuxDevice{Path: "/dev/sdc", Type: "b", Major: 8, Minor: 32})
	g := translate(t, spec)
	var got, want []string
	for _, d := range g.Spec.Linux.Devices {
		got = append(got, d.Path)
	}
	for _, d := range keep {
		want = append(want, d.Path)
	}
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("kept %q, want %q", got, want)
	}
	for _, d := range drop {
		ignored(t, g, d.Path)
	}
}

func TestSecurityLabelsOfTheHost(t *testing.T) {
	spec := minimal()
	spec.Process.ApparmorProfile = "cri-containerd.apparmor.d"
	spec.Process.SelinuxLabel = "system_u:system_r:container_t:s0"
	spec.Linux.MountLabel = "system_u:object_r:container_file_t:s0"
	spec.Linux.IntelRdt = &specs.LinuxIntelRdt{ClosID: "x"}
	spec.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActErrno}
	spec.Linux.MaskedPaths = []string{"/proc/kcore"}
	spec.Linux.ReadonlyPaths = []string{"/proc/sys"}
	spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: []string{"CAP_KILL"}}
	spec.Process.NoNewPrivileges = true
	g := translate(t, spec)
	p, l := g.Spec.Process, g.Spec.Linux
	if p.ApparmorProfile != "" || p.SelinuxLabel != "" || l.MountLabel != "" || l.IntelRdt != nil {
		t.Errorf("the host's labels went along: %+v %+v", p, l)
	}
	for _, word := range []string{"apparmor", "selinux", "intelRdt"} {
		ignored(t, g, word)
	}
	if l.Seccomp == nil || len(l.MaskedPaths) != 1 || len(l.ReadonlyPaths) != 1 || p.Capabilities == nil || !p.NoNewPrivileges {
		t.Errorf("what holds in a guest was dropped: %+v %+v", p, l)
	}

	spec = minimal()
	spec.Linux.Seccomp = &specs.LinuxSeccomp{ListenerPath: "/run/notify.sock"}
	refused(t, spec, errdefs.IsNotImplemented, "listenerPath")
}

func TestWhatTheGuestsRuntimeDoesNotKnow(t *testing.T) {
	spec := minimal()
	spec.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedBatch}
	spec.Process.IOPriority = &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_IDLE}
	spec.Process.ExecCPUAffinity = &specs.CPUAffinity{Initial: "0"}
	spec.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Nodes: "0"}
	spec.Linux.Resources = &specs.LinuxResources{CPU: &specs.LinuxCPU{Burst: new(uint64(1))}}
	g := translate(t, spec)
	for _, word := range []string{"process.scheduler", "memoryPolicy", "cpu.burst"} {
		ignored(t, g, word)
	}
	p, l := g.Spec.Process, g.Spec.Linux
	if p.Scheduler != nil || p.IOPriority != nil || p.ExecCPUAffinity != nil || l.MemoryPolicy != nil || l.Resources.CPU.Burst != nil {
		t.Errorf("they went along: %+v, %+v", p, l)
	}

	spec = minimal()
	spec.Linux.NetDevices = map[string]specs.LinuxNetDevice{"eth1": {}}
	refused(t, spec, errdefs.IsNotImplemented, "netDevices")
	spec = minimal()
	spec.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"boottime": {Secs: 1}}
	refused(t, spec, errdefs.IsNotImplemented, "timeOffsets")
}
