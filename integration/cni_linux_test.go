package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/pelletier/go-toml/v2"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/lab"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/policy"
)

// testCtrCNI runs `ctr run --cni`, with our own plugin: it fills the network
// namespace of the machine's process, and the guest has what is in it.
func testCtrCNI(r *rig) {
	r.beyond()
	dir := r.TB().TempDir()
	cfg := network.DefaultConfig()
	// The plugin's policy is in its own configuration.
	cfg.DNS = []netip.Addr{netip.MustParseAddr(friend)}
	n, err := network.Open(cfg)
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() {
		if err := n.Destroy(context.WithoutCancel(r.ctx)); err != nil {
			r.Error(err)
		}
	})
	file, shim := filepath.Join(dir, "network.toml"), filepath.Join(dir, "shim.toml")
	data, err := toml.Marshal(cfg)
	if err == nil {
		err = errors.Join(os.WriteFile(file, data, 0o600), r.WriteShimConfig(shim, lab.ShimConfig{Network: "cni"}))
	}
	if err != nil {
		r.Fatal(err)
	}
	list, err := json.Marshal(map[string]any{
		"cniVersion": "1.0.0", "name": "cube",
		"plugins": []any{map[string]any{
			"type": "cni-bhyve", "config": file,
			"policy": policy.Policy{Allow: []policy.Rule{{Peers: []string{friend}, Protocol: "tcp", Ports: []string{"80"}}}},
		}},
	})
	if err != nil {
		r.Fatal(err)
	}
	// ctr looks nowhere else.
	etc, opt := filepath.Join(dir, "etc"), filepath.Join(dir, "opt")
	plugin, err := r.FindShim("cni-bhyve")
	if err != nil {
		r.Fatal(err)
	}
	err = errors.Join(
		os.MkdirAll(filepath.Join(etc, "cni/net.d"), 0o755), os.MkdirAll(filepath.Join(opt, "cni/bin"), 0o755),
		os.WriteFile(filepath.Join(etc, "cni/net.d/10-cube.conflist"), list, 0o644),
		os.Symlink(plugin, filepath.Join(opt, "cni/bin/cni-bhyve")))
	if err != nil {
		r.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(r.ctx, commandTimeout)
	defer cancel()
	// The second fetch is what the plugin's policy does not allow.
	cmd := r.Command(ctx, r.runArgs([]string{"--cni", "--runtime-config-path", shim},
		"/bin/sh", "-c", fmt.Sprintf("/bin/probe fetch http://%s/ || exit 3; /bin/probe fetch http://%s/ || exit 4", friend, foe))...)
	over(cmd, map[string]string{"/etc": etc, "/opt": opt})
	r.expect(r.wait(ctx, cmd), 4, labUplink+"\n")
	if infos, err := n.List(r.ctx); err != nil || len(infos) > 0 {
		r.Errorf("left: %+v, %v", infos, err)
	}
}

// over lets a command see directories with more in them than there is, in a mount
// namespace of its own.
func over(cmd *exec.Cmd, more map[string]string) {
	script := ""
	for dir, with := range more {
		script += fmt.Sprintf("mount -n -t overlay overlay -o lowerdir=%s:%s %s && ", with, dir, dir)
	}
	args := append([]string{"unshare", "--mount", "sh", "-c", script + `exec "$0" "$@"`, cmd.Path}, cmd.Args[1:]...)
	cmd.Path, cmd.Args = "/usr/bin/unshare", args
}
