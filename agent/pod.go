//go:build linux

package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/pkg/identifiers"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto"
	agentv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto/v1"
)

// pod is the Pod service, and what makes the namespaces that containers of the
// machine share. Each is made once, for the first that needs it.
type pod struct {
	// make is how each of the shared things is made, by its path; the real ones
	// but in tests.
	make map[string]func() error

	mu         sync.Mutex
	made       map[string]bool
	configured bool
}

func newPod() *pod {
	return &pod{
		made: map[string]bool{},
		make: map[string]func() error{
			agentproto.SandboxIPCNS: func() error { return makeNamespace(agentproto.SandboxIPCNS, "ipc", unix.CLONE_NEWIPC, nil) },
			agentproto.SandboxUTSNS: func() error { return makeNamespace(agentproto.SandboxUTSNS, "uts", unix.CLONE_NEWUTS, nil) },
			agentproto.SandboxPIDNS: func() error { return makePIDNS(agentproto.SandboxPIDNS) },
			agentproto.SandboxShm:   mountShm,
		},
	}
}

// shmSize is what containerd gives to a pod.
const shmSize = "65536k"

func mountShm() error {
	if err := os.MkdirAll(agentproto.SandboxShm, 0o755); err != nil {
		return fmt.Errorf("make shared memory: %w", err)
	}
	err := unix.Mount("shm", agentproto.SandboxShm, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=1777,size="+shmSize)
	if err != nil {
		return fmt.Errorf("make shared memory: %w", err)
	}
	return nil
}

// provide makes what config, a config.json, names of the shared things.
func (p *pod) provide(config []byte) error {
	var spec struct {
		Linux struct {
			Namespaces []specs.LinuxNamespace `json:"namespaces"`
		} `json:"linux"`
		Mounts []specs.Mount `json:"mounts"`
	}
	if err := json.Unmarshal(config, &spec); err != nil {
		return fmt.Errorf("config.json: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	for _, ns := range spec.Linux.Namespaces {
		if err := p.ensure(ns.Path); err != nil {
			return err
		}
	}
	for _, m := range spec.Mounts {
		if err := p.ensure(m.Source); err != nil {
			return err
		}
	}
	return nil
}

// ensure makes the shared thing at path, if it is one and is not there yet.
func (p *pod) ensure(path string) error {
	f, ok := p.make[path]
	if !ok {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.made[path] {
		return nil
	}
	if err := f(); err != nil {
		return err
	}
	p.made[path] = true
	return nil
}

// Configure implements agentv1.PodService.
func (p *pod) Configure(_ context.Context, r *agentv1.ConfigurePodRequest) (*emptypb.Empty, error) {
	if err := validatePod(r); err != nil {
		return nil, err
	}
	p.mu.Lock()
	again := p.configured || len(p.made) > 0
	p.configured = true
	p.mu.Unlock()
	if again {
		return nil, fmt.Errorf("pod: it has been set up already: %w", errdefs.ErrFailedPrecondition)
	}
	if r.Hostname != "" {
		if err := p.ensure(agentproto.SandboxUTSNS); err != nil {
			return nil, err
		}
		set := func() error { return unix.Sethostname([]byte(r.Hostname)) }
		if err := inNamespaces(set, agentproto.SandboxUTSNS); err != nil {
			return nil, fmt.Errorf("pod: host name: %w", err)
		}
	}
	if len(r.Sysctls) > 0 {
		if err := p.ensure(agentproto.SandboxIPCNS); err != nil {
			return nil, err
		}
		set := func() error { return setSysctls(r.Sysctls) }
		if err := inNamespaces(set, agentproto.SandboxNetNS, agentproto.SandboxIPCNS); err != nil {
			return nil, fmt.Errorf("pod: %w", err)
		}
	}
	for _, f := range r.Files {
		path := agentproto.SandboxFile(f.Name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return nil, fmt.Errorf("pod: %w", err)
		}
		if err := os.WriteFile(path, f.Content, 0o644); err != nil {
			return nil, fmt.Errorf("pod: %w", err)
		}
	}
	return &emptypb.Empty{}, nil
}

// maxHostname is the kernel's bound (__NEW_UTS_LEN).
const maxHostname = 64

func validatePod(r *agentv1.ConfigurePodRequest) error {
	if len(r.Hostname) > maxHostname {
		return fmt.Errorf("pod: host name of %d bytes: want at most %d: %w", len(r.Hostname), maxHostname, errdefs.ErrInvalidArgument)
	}
	for name := range r.Sysctls {
		if _, err := sysctlPath(name); err != nil {
			return fmt.Errorf("pod: %w", err)
		}
	}
	for _, f := range r.Files {
		if err := identifiers.Validate(f.GetName()); err != nil {
			return fmt.Errorf("pod: file: %w", err)
		}
	}
	return nil
}

// sysctlName is what names are made of. Those of network interfaces may have
// dots, and are then written with slashes: net/ipv4/conf/eth0.1/forwarding.
var sysctlName = regexp.MustCompile(`^[a-zA-Z0-9_-][a-zA-Z0-9_.:/-]*$`)

// podSysctls are what a network or an IPC namespace has of its own
// (namespaces(7)); a name that ends with a dot or star stands for all that start
// like it. The others are the machine's: containers are limited by its cgroups
// and must not change it under each other.
var podSysctls = []string{"net.", "fs.mqueue.", "kernel.msg*", "kernel.shm*", "kernel.sem"}

// sysctlPath is the file of a sysctl that belongs to the pod's namespaces.
func sysctlPath(name string) (string, error) {
	dotted, path := name, strings.ReplaceAll(name, ".", "/")
	if strings.Contains(name, "/") {
		dotted, path = strings.ReplaceAll(name, "/", "."), name
	}
	if !sysctlName.MatchString(name) || !filepath.IsLocal(path) || filepath.Clean(path) != path {
		return "", fmt.Errorf("sysctl %q: not a name: %w", name, errdefs.ErrInvalidArgument)
	}
	mine := slices.ContainsFunc(podSysctls, func(s string) bool {
		prefix, star := strings.CutSuffix(s, "*")
		return dotted == s || (star || strings.HasSuffix(s, ".")) && strings.HasPrefix(dotted, prefix)
	})
	if !mine {
		return "", fmt.Errorf("sysctl %q: it is not of a pod's network or IPC namespace: %w", name, errdefs.ErrInvalidArgument)
	}
	return filepath.Join("/proc/sys", path), nil
}

// setSysctls sets sysctls in the namespaces of the calling thread.
func setSysctls(sysctls map[string]string) error {
	for _, name := range slices.Sorted(maps.Keys(sysctls)) {
		path, err := sysctlPath(name)
		if err != nil {
			return err
		}
		// Never made: what is not there, no namespace has.
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("sysctl %q: a pod has none such: %w", name, errdefs.ErrInvalidArgument)
		}
		if err != nil {
			return fmt.Errorf("sysctl %q: %w", name, err)
		}
		_, err = f.WriteString(sysctls[name])
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if errors.Is(err, unix.EINVAL) {
			err = fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
		}
		if err != nil {
			return fmt.Errorf("sysctl %q = %q: %w", name, sysctls[name], err)
		}
	}
	return nil
}
