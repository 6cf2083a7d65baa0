//go:build linux

package agent

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto"
	agentv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto/v1"
)

func TestSysctlsOfAPod(t *testing.T) {
	for name, want := range map[string]string{
		"net.core.somaxconn":                      "/proc/sys/net/core/somaxconn",
		"net/ipv4/conf/eth0.1/forwarding":         "/proc/sys/net/ipv4/conf/eth0.1/forwarding",
		"kernel.shmmax":                           "/proc/sys/kernel/shmmax",
		"kernel.msgmnb":                           "/proc/sys/kernel/msgmnb",
		"kernel.sem":                              "/proc/sys/kernel/sem",
		"fs.mqueue.msg_max":                       "/proc/sys/fs/mqueue/msg_max",
		"net.ipv4.ip_unprivileged_port_start":     "/proc/sys/net/ipv4/ip_unprivileged_port_start",
		"vm.swappiness":                           "",
		"kernel.core_pattern":                     "",
		"kernel.hostname":                         "",
		"kernel.sem2":                             "",
		"fs.file-max":                             "",
		"network.x":                               "",
		"net..core":                               "",
		"net.":                                    "",
		"net/../kernel/core_pattern":              "",
		"net/../../../etc/passwd":                 "",
		"/net/core/somaxconn":                     "",
		"net.core.somaxconn\n":                    "",
		"":                                        "",
		"net/./core/somaxconn":                    "",
		"kernel.shm/../core_pattern":              "",
		"kernel/shm/../core_pattern":              "",
		"net.ipv4.conf." + strings.Repeat("a", 9): "/proc/sys/net/ipv4/conf/aaaaaaaaa",
	} {
		got, err := sysctlPath(name)
		if got != want || (want == "") != errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: got %q, %v, want %q", name, got, err, want)
		}
	}
}

func TestWhatABundleNamesIsMadeOnce(t *testing.T) {
	p := newPod()
	var made []string
	fail := errors.New("not now")
	for path := range p.make {
		p.make[path] = func() error {
			if path == agentproto.SandboxPIDNS && fail != nil {
				return fail
			}
			made = append(made, path)
			return nil
		}
	}
	config := func(s specs.Spec) []byte {
		data, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	lone := config(specs.Spec{Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{
		{Type: specs.NetworkNamespace, Path: agentproto.SandboxNetNS}, {Type: specs.IPCNamespace}, {Type: specs.PIDNamespace},
	}}})
	member := config(specs.Spec{
		Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{
			{Type: specs.IPCNamespace, Path: agentproto.SandboxIPCNS}, {Type: specs.UTSNamespace, Path: agentproto.SandboxUTSNS},
		}},
		Mounts: []specs.Mount{{Destination: "/dev/shm", Source: agentproto.SandboxShm}},
	})
	sharing := config(specs.Spec{Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: specs.PIDNamespace, Path: agentproto.SandboxPIDNS}}}})
	if err := p.provide(lone); err != nil || len(made) > 0 {
		t.Errorf("made for a container that shares nothing: %q, %v", made, err)
	}
	for range 2 {
		if err := p.provide(member); err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(made)
	if want := []string{agentproto.SandboxIPCNS, agentproto.SandboxShm, agentproto.SandboxUTSNS}; !slices.Equal(made, want) {
		t.Errorf("made %q, want %q", made, want)
	}
	if err := p.provide(sharing); !errors.Is(err, fail) {
		t.Errorf("got %v", err)
	}
	fail = nil
	if err := p.provide(sharing); err != nil || len(made) != 4 {
		t.Errorf("after a failure: %q, %v", made, err)
	}
}

func TestPodsThatAreRefused(t *testing.T) {
	for name, r := range map[string]*agentv1.ConfigurePodRequest{
		"host name too long":      {Hostname: strings.Repeat("a", 65)},
		"a sysctl of the machine": {Sysctls: map[string]string{"kernel.panic": "0"}},
		"a file elsewhere":        {Files: []*agentv1.PodFile{{Name: "../x"}}},
		"a file without a name":   {Files: []*agentv1.PodFile{nil}},
	} {
		if _, err := newPod().Configure(context.Background(), r); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	p := newPod()
	if _, err := p.Configure(context.Background(), &agentv1.ConfigurePodRequest{}); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Configure(context.Background(), &agentv1.ConfigurePodRequest{}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("second time: %v", err)
	}
}
