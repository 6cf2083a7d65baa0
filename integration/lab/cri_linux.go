package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/pelletier/go-toml/v2"
	"github.com/vishvananda/netlink"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/image"
)

// disabledHere: tests of ZFS are FreeBSD's.
var disabledHere = []string{"io.containerd.snapshotter.v1.zfs"}

// The runtime handlers of CRI, as critest's and crictl's flags name them.
const (
	// HandlerRunc is the reference.
	HandlerRunc = "runc"
	// HandlerBhyve is this repository's shim as its own sandboxer.
	HandlerBhyve = "bhyve"
	// HandlerPause is this repository's shim below the older grouping, with a
	// pause container.
	HandlerPause = "bhyve-pause"
)

// PodNetwork is where pods have their addresses, all of it in the world's own
// network namespace.
const PodNetwork = "10.88.0.0/16"

// podGateway is the bridge's address in PodNetwork; host-local takes the first.
const podGateway = "10.88.0.1/16"

const podBridge = "lab0"

// plugins configures CRI: two sandboxers for this repository's runtime, CNI and
// images from the lab's own registry.
func (l *Lab) plugins() map[string]any {
	handler := func(runtime, sandboxer string) map[string]any {
		return map[string]any{"runtime_type": runtime, "sandboxer": sandboxer}
	}
	return map[string]any{
		"io.containerd.cri.v1.images": map[string]any{
			"snapshotter":   snapshotter,
			"pinned_images": map[string]any{"sandbox": image.PauseName},
			"registry":      map[string]any{"config_path": l.hostsDir()},
		},
		"io.containerd.cri.v1.runtime": map[string]any{
			// Hosts that are containers themselves refuse a lower one than their own.
			"restrict_oom_score_adj": true,
			"cni": map[string]any{
				"bin_dirs":              []string{l.CNIPlugins()},
				"conf_dir":              l.cniDir(),
				"use_internal_loopback": true,
			},
			"containerd": map[string]any{
				"default_runtime_name": HandlerRunc,
				"runtimes": map[string]any{
					HandlerRunc:  handler(RuntimeRunc, "podsandbox"),
					HandlerBhyve: handler(RuntimeBhyve, "shim"),
					HandlerPause: handler(RuntimeBhyve, "podsandbox"),
				},
			},
		},
	}
}

// CNIPlugins is the directory of the CNI plugins that were built for the tests.
func (l *Lab) CNIPlugins() string { return filepath.Join(l.repo, artifacts.toolDir, "cni") }

func (l *Lab) cniDir() string   { return filepath.Join(l.Dir, "cni") }
func (l *Lab) hostsDir() string { return filepath.Join(l.Dir, "hosts") }

// furnishCRI writes what CRI reads, and starts the registry that serves every
// image name there is.
func (l *Lab) furnishCRI() error {
	registry, err := serveImages()
	if err != nil {
		return fmt.Errorf("registry: %w", err)
	}
	l.registry = registry
	// What CRI makes for its first pod and keeps.
	for _, dir := range []string{
		"/run/netns",
		inState("io.containerd.grpc.v1.cri/containers"),
		inState("io.containerd.grpc.v1.cri/sandboxes"),
		inState("io.containerd.runtime.v2.task/" + CRINamespace),
		inState("io.containerd.sandbox.controller.v1.shim/" + CRINamespace),
		filepath.Join(l.Dir, "containerd/io.containerd.runtime.v2.task", CRINamespace),
	} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return err
		}
	}
	return errors.Join(l.writeHosts(), l.writeCNI(), addBridge())
}

// writeHosts redirects all registries to the lab's own.
func (l *Lab) writeHosts() error {
	dir := filepath.Join(l.hostsDir(), "_default")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	url := "http://" + l.registry.Addr()
	data, err := toml.Marshal(map[string]any{
		"server": url,
		"host":   map[string]any{url: map[string]any{"capabilities": []string{"pull", "resolve"}}},
	})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "hosts.toml"), data, 0o644)
}

// writeCNI describes a bridge with addresses and port mappings. nftables is the
// only packet filter that the lab's machines have.
func (l *Lab) writeCNI() error {
	if err := os.MkdirAll(l.cniDir(), 0o755); err != nil {
		return err
	}
	conf := map[string]any{
		"cniVersion": "1.0.0",
		"name":       "lab",
		"plugins": []map[string]any{
			{
				"type": "bridge", "bridge": podBridge, "isGateway": true, "hairpinMode": true,
				"ipam": map[string]any{
					"type":    "host-local",
					"dataDir": filepath.Join(l.Dir, "cni-addresses"),
					"ranges":  [][]map[string]any{{{"subnet": PodNetwork}}},
					"routes":  []map[string]any{{"dst": "0.0.0.0/0"}},
				},
			},
			{"type": "portmap", "backend": "nftables", "snat": true, "capabilities": map[string]any{"portMappings": true}},
		},
	}
	data, err := json.MarshalIndent(conf, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(l.cniDir(), "10-lab.conflist"), data, 0o644)
}

// addBridge makes the pods' bridge as the CNI plugin would with the first pod:
// the plugin never removes it, so it belongs to the lab.
func addBridge() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = podBridge
	bridge := &netlink.Bridge{LinkAttrs: attrs}
	if err := netlink.LinkAdd(bridge); err != nil {
		return fmt.Errorf("add bridge %s: %w", podBridge, err)
	}
	ip, network, err := net.ParseCIDR(podGateway)
	if err != nil {
		return err
	}
	network.IP = ip
	if err := netlink.AddrAdd(bridge, &netlink.Addr{IPNet: network}); err != nil {
		return fmt.Errorf("address of %s: %w", podBridge, err)
	}
	return netlink.LinkSetUp(bridge)
}

// PushCRIImages makes what the tests of CRI pull, and puts it into the registry.
func (l *Lab) PushCRIImages(ctx context.Context) error {
	all, err := image.CRI(artifacts.busybox, l.Probe())
	if err != nil {
		return err
	}
	for _, img := range all {
		if err := l.registry.Push(ctx, img); err != nil {
			return err
		}
	}
	return nil
}
