// Package pod is what is known of a sandbox before its first container: the
// request of the Sandbox API, and the pod that containerd's CRI plugin sends
// along with it. It is turned into what the host and the guest have to do.
package pod

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/bundle"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/sizing"
)

// Request is what the Sandbox API's CreateSandbox brings.
type Request struct {
	// ID is the sandbox's. Bundle is the directory that containerd has for it,
	// with a config.json or without.
	ID, Bundle string
	// NetNS is the path of the host's network namespace for it, empty for none.
	NetNS string
	// Options are a runtime.v1.PodSandboxConfig of CRI's, or nil.
	Options     typeurl.Any
	Annotations map[string]string
}

// Config is a sandbox as it is wanted.
type Config struct {
	ID, Bundle, NetNS string
	// Annotations are those of the sandbox from wherever they came.
	Annotations map[string]string
	// Hostname is the pod's, empty for whatever the guest has.
	Hostname string
	// Cgroup is the pod's on the host, as linux.cgroupsPath of a spec has it; empty
	// for the shim's own.
	Cgroup string
	// Sysctls are set in the pod's namespaces.
	Sysctls map[string]string
	// Files are found by all containers that mount nothing else there.
	Files []File
	// TargetPID is true where a container that names a PID namespace means that of
	// another container, not one of the whole pod.
	TargetPID bool
	// CRI is the pod as CRI describes it, nil if somebody else made the sandbox.
	CRI *runtime.PodSandboxConfig
}

// File is a file of the pod's.
type File struct {
	// Path is where containers find it: "/etc/hosts".
	Path    string
	Content []byte
}

// Name is what the guest knows the file by: "hosts".
func (f File) Name() string { return path.Base(f.Path) }

// Paths are where the pod's files are found.
func (c Config) Paths() []string {
	var paths []string
	for _, f := range c.Files {
		paths = append(paths, f.Path)
	}
	return paths
}

// criConfig is the type of what CRI sends.
var criConfig = string((&runtime.PodSandboxConfig{}).ProtoReflect().Descriptor().FullName())

// New makes the configuration of a sandbox. What is wrong is
// errdefs.ErrInvalidArgument, what no machine can do errdefs.ErrNotImplemented.
func New(r Request) (Config, error) {
	c := Config{ID: r.ID, Bundle: r.Bundle, NetNS: r.NetNS, Annotations: map[string]string{}}
	spec, err := bundle.Load(r.Bundle)
	switch {
	case errdefs.IsNotFound(err):
	case err != nil:
		return Config{}, fmt.Errorf("sandbox %s: %w", r.ID, err)
	default:
		c.Hostname = spec.Hostname
		c.annotate(spec.Annotations)
	}
	if r.Options != nil && r.Options.GetTypeUrl() != "" {
		if err := c.fromCRI(r.Options); err != nil {
			return Config{}, fmt.Errorf("sandbox %s: %w", r.ID, err)
		}
	}
	c.annotate(r.Annotations)
	if err := bundle.CheckAnnotations(c.Annotations); err != nil {
		return Config{}, fmt.Errorf("sandbox %s: %w", r.ID, err)
	}
	return c, nil
}

// Size is what the machine's size is to be computed from.
func (c Config) Size() sizing.Request {
	r := c.CRI.GetLinux().GetResources()
	return sizing.Request{
		CPUQuota: r.GetCpuQuota(), CPUPeriod: r.GetCpuPeriod(), MemoryBytes: r.GetMemoryLimitInBytes(),
		Annotations: c.Annotations,
	}
}

// cgroupOf is where containerd puts what belongs to the sandbox below a pod's
// cgroup (getCgroupsPath in internal/cri/server/helpers_linux.go).
func cgroupOf(parent, id string) string {
	switch base := path.Base(parent); {
	case parent == "":
		return ""
	case strings.HasSuffix(base, ".slice"):
		return base + ":cri-containerd:" + id
	}
	return path.Join(parent, id)
}

func (c *Config) annotate(annotations map[string]string) {
	for k, v := range annotations {
		c.Annotations[k] = v
	}
}

func (c *Config) fromCRI(options typeurl.Any) error {
	if options.GetTypeUrl() != criConfig {
		return fmt.Errorf("options of type %q, want %s: %w", options.GetTypeUrl(), criConfig, errdefs.ErrInvalidArgument)
	}
	c.CRI = new(runtime.PodSandboxConfig)
	if err := proto.Unmarshal(options.GetValue(), c.CRI); err != nil {
		return fmt.Errorf("malformed %s: %w: %w", criConfig, err, errdefs.ErrInvalidArgument)
	}
	namespaces := c.CRI.GetLinux().GetSecurityContext().GetNamespaceOptions()
	if u := namespaces.GetUsernsOptions(); u != nil && u.Mode == runtime.NamespaceMode_POD {
		return fmt.Errorf("a pod with a user namespace: %w", errdefs.ErrNotImplemented)
	}
	c.TargetPID = namespaces.GetPid() == runtime.NamespaceMode_CONTAINER
	c.annotate(c.CRI.GetAnnotations())
	c.Cgroup = cgroupOf(c.CRI.GetLinux().GetCgroupParent(), c.ID)

	if c.Hostname = c.CRI.GetHostname(); c.Hostname == "" {
		// As the environment of its containers has it by then (containerd's
		// internal/cri/server/container_create.go).
		name, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("host name: %w", err)
		}
		c.Hostname = name
	}
	c.Sysctls = podSysctls(c.CRI.GetLinux().GetSysctls(), namespaces.GetNetwork())
	resolv, err := resolvConf(c.CRI.GetDnsConfig())
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	default:
		c.Files = append(c.Files, File{"/etc/resolv.conf", resolv})
	}
	// For a client that brings no /etc/hosts of its own. kubelet does. The pod's own
	// name is added with its network.
	c.Files = append(c.Files, File{"/etc/hostname", []byte(c.Hostname + "\n")}, File{"/etc/hosts", []byte(agentproto.LocalHosts)})
	return nil
}

// podSysctls are those that were asked for, and those that containerd gives to
// every pod of runc's that has a network of its own (its settings
// enable_unprivileged_ports and enable_unprivileged_icmp, on by default).
func podSysctls(asked map[string]string, network runtime.NamespaceMode) map[string]string {
	sysctls := map[string]string{}
	if network != runtime.NamespaceMode_NODE {
		sysctls["net.ipv4.ip_unprivileged_port_start"] = "0"
		sysctls["net.ipv4.ping_group_range"] = "0 2147483647"
	}
	for k, v := range asked {
		sysctls[k] = v
	}
	return sysctls
}
