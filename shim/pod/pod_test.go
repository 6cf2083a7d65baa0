package pod

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/types/known/anypb"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// options are what containerd sends: its typeurl of the message.
func options(t *testing.T, c *runtime.PodSandboxConfig) typeurl.Any {
	t.Helper()
	any, err := typeurl.MarshalAny(c)
	if err != nil {
		t.Fatal(err)
	}
	return any
}

func file(t *testing.T, c Config, path string) string {
	t.Helper()
	i := slices.IndexFunc(c.Files, func(f File) bool { return f.Path == path })
	if i < 0 {
		t.Fatalf("no %s in %q", path, c.Paths())
	}
	return string(c.Files[i].Content)
}

func TestAPodOfCRI(t *testing.T) {
	c, err := New(Request{ID: "pod", Bundle: t.TempDir(), NetNS: "/run/netns/cni-1", Options: options(t, &runtime.PodSandboxConfig{
		Hostname:    "web-0",
		Annotations: map[string]string{"a": "b"},
		DnsConfig:   &runtime.DNSConfig{Servers: []string{"10.0.0.10", "10.0.0.11"}, Searches: []string{"svc.local", "local"}, Options: []string{"ndots:5"}},
		Linux: &runtime.LinuxPodSandboxConfig{
			Sysctls: map[string]string{"net.core.somaxconn": "1024", "net.ipv4.ip_unprivileged_port_start": "1024"},
		},
	}), Annotations: map[string]string{"c": "d"}})
	if err != nil {
		t.Fatal(err)
	}
	if c.ID != "pod" || c.Hostname != "web-0" || c.NetNS != "/run/netns/cni-1" || c.TargetPID {
		t.Errorf("got %+v", c)
	}
	if want := map[string]string{"a": "b", "c": "d"}; !maps.Equal(c.Annotations, want) {
		t.Errorf("annotations are %v", c.Annotations)
	}
	want := map[string]string{
		"net.core.somaxconn": "1024", "net.ipv4.ip_unprivileged_port_start": "1024", "net.ipv4.ping_group_range": "0 2147483647",
	}
	if !maps.Equal(c.Sysctls, want) {
		t.Errorf("sysctls are %v, want %v", c.Sysctls, want)
	}
	if got, want := file(t, c, "/etc/resolv.conf"), "search svc.local local\nnameserver 10.0.0.10\nnameserver 10.0.0.11\noptions ndots:5\n"; got != want {
		t.Errorf("resolv.conf is %q, want %q", got, want)
	}
	if got := file(t, c, "/etc/hostname"); got != "web-0\n" {
		t.Errorf("hostname is %q", got)
	}
	if got := file(t, c, "/etc/hosts"); !strings.Contains(got, "127.0.0.1\tlocalhost\n") {
		t.Errorf("hosts is %q", got)
	}
}

func TestAPodThatLeavesThingsToTheHost(t *testing.T) {
	dir := t.TempDir()
	hostResolvConf = filepath.Join(dir, "resolv.conf")
	t.Cleanup(func() { hostResolvConf = "/etc/resolv.conf" })
	bare := options(t, &runtime.PodSandboxConfig{Linux: &runtime.LinuxPodSandboxConfig{SecurityContext: &runtime.LinuxSandboxSecurityContext{
		NamespaceOptions: &runtime.NamespaceOption{Network: runtime.NamespaceMode_NODE, Pid: runtime.NamespaceMode_CONTAINER},
	}}})
	c, err := New(Request{ID: "pod", Bundle: dir, Options: bare})
	if err != nil {
		t.Fatal(err)
	}
	name, err := os.Hostname()
	if err != nil || c.Hostname != name {
		t.Errorf("host name %q, want the host's, %q (%v)", c.Hostname, name, err)
	}
	if slices.Contains(c.Paths(), "/etc/resolv.conf") {
		t.Error("a resolv.conf came from a host that has none")
	}
	if len(c.Sysctls) > 0 || !c.TargetPID {
		t.Errorf("got %+v", c)
	}
	if err := os.WriteFile(hostResolvConf, []byte("nameserver 192.0.2.1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if c, err = New(Request{ID: "pod", Bundle: dir, Options: bare}); err != nil {
		t.Fatal(err)
	}
	if got := file(t, c, "/etc/resolv.conf"); got != "nameserver 192.0.2.1\n" {
		t.Errorf("resolv.conf is %q", got)
	}
}

// A client other than CRI brings a spec, or nothing at all.
func TestASandboxOfNobodys(t *testing.T) {
	dir := t.TempDir()
	c, err := New(Request{ID: "box", Bundle: dir})
	if err != nil || c.Hostname != "" || len(c.Files)+len(c.Sysctls) > 0 {
		t.Errorf("got %+v, %v", c, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(`{"hostname":"h","annotations":{"a":"b"}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err = New(Request{ID: "box", Bundle: dir, Annotations: map[string]string{"a": "c"}})
	if err != nil || c.Hostname != "h" || c.Annotations["a"] != "c" {
		t.Errorf("got %+v, %v", c, err)
	}
}

func TestPodsThatAreRefused(t *testing.T) {
	malformed := t.TempDir()
	if err := os.WriteFile(filepath.Join(malformed, "config.json"), []byte(`{`), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		r    Request
		kind func(error) bool
	}{
		"options of another type": {Request{Options: &anypb.Any{TypeUrl: "containerd.runc.v1.Options"}}, errdefs.IsInvalidArgument},
		"malformed options":       {Request{Options: &anypb.Any{TypeUrl: criConfig, Value: []byte{0xff}}}, errdefs.IsInvalidArgument},
		"malformed spec":          {Request{Bundle: malformed}, errdefs.IsInvalidArgument},
		"a DNS server with a line of its own": {Request{Options: options(t, &runtime.PodSandboxConfig{
			DnsConfig: &runtime.DNSConfig{Servers: []string{"1.1.1.1\nnameserver 6.6.6.6"}},
		})}, errdefs.IsInvalidArgument},
		"a user namespace": {Request{Options: options(t, &runtime.PodSandboxConfig{Linux: &runtime.LinuxPodSandboxConfig{
			SecurityContext: &runtime.LinuxSandboxSecurityContext{NamespaceOptions: &runtime.NamespaceOption{
				UsernsOptions: &runtime.UserNamespace{Mode: runtime.NamespaceMode_POD},
			}},
		}})}, errdefs.IsNotImplemented},
	} {
		if tc.r.Bundle == "" {
			tc.r.Bundle = t.TempDir()
		}
		if _, err := New(tc.r); err == nil || !tc.kind(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
