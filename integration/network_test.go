//go:build linux || freebsd

package integration

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/lab"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/policy"
)

// Addresses beyond the lab, of a range for documentation (RFC 5737). Each of them
// answers HTTP requests with the address that it was asked from.
const (
	labUplink = "203.0.113.1"
	friend    = "203.0.113.10"
	foe       = "203.0.113.66"
	webPort   = 80
)

// teller answers HTTP requests with the address that they came from.
var teller = http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
	host, _, _ := net.SplitHostPort(req.RemoteAddr)
	io.WriteString(w, host+"\n")
})

// withNetwork writes a shim configuration with a default network of this policy.
// The network is gone when the test ends.
func (r *rig) withNetwork(p policy.Policy) (flags []string, n *network.Network) {
	r.Helper()
	return r.withNetworkAnd(p, lab.ShimConfig{})
}

// withNetworkAnd is withNetwork with more in the shim's configuration.
func (r *rig) withNetworkAnd(p policy.Policy, c lab.ShimConfig) (flags []string, n *network.Network) {
	r.Helper()
	dir := r.TB().TempDir()
	cfg := network.DefaultConfig()
	cfg.Policy = p
	cfg.LogGroup = 78
	cfg.DNS = []netip.Addr{netip.MustParseAddr(friend)}
	n, err := network.Open(cfg)
	if err != nil {
		r.Fatal(err)
	}
	data, err := toml.Marshal(cfg)
	if err != nil {
		r.Fatal(err)
	}
	file, shim := filepath.Join(dir, "network.toml"), filepath.Join(dir, "shim.toml")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		r.Fatal(err)
	}
	c.Network, c.NetworkConfig = "default", file
	if err := r.WriteShimConfig(shim, c); err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() {
		if err := n.Destroy(context.WithoutCancel(r.ctx)); err != nil {
			r.Error(err)
		}
	})
	return []string{"--runtime-config-path", shim}, n
}

// TB is the test, for its methods that Lab has as well.
func (r *rig) TB() testing.TB { return r.T }

// infoOf is what the network knows of a container's sandbox; an empty one if it is
// not there.
func infoOf(infos []network.Info, id string) network.Info {
	i := slices.IndexFunc(infos, func(info network.Info) bool { return strings.HasPrefix(info.ID, id+".") })
	if i < 0 {
		return network.Info{}
	}
	return infos[i]
}

// networkOf is what the network knows of a container's machine.
func (r *rig) networkOf(n *network.Network, id string) network.Info {
	r.Helper()
	infos, err := n.List(r.ctx)
	if err != nil {
		r.Fatal(err)
	}
	info := infoOf(infos, id)
	if info.ID == "" {
		r.Fatalf("%s has no network", id)
	}
	return info
}

// wantOnNetwork checks that a container has the address that it was given, and
// reaches what it may, and no more.
func (r *rig) wantOnNetwork(n *network.Network, id string) network.Info {
	r.Helper()
	info := r.networkOf(n, id)
	if err := n.Check(r.ctx, info.ID); err != nil {
		r.Error(err)
	}
	out := r.mustOK(r.exec(id, nil, nil, nil, "/bin/sh", "-c", "cat /sys/class/net/eth0/address; ip -4 -o addr show eth0")).Stdout
	if !strings.HasPrefix(out, info.MAC.String()+"\n") || strings.Count(out, " inet ") != 1 || !strings.Contains(out, info.Address.String()+"/32") {
		r.Errorf("%s and %s are in the guest %q", info.MAC, info.Address, out)
	}
	r.expect(r.exec(id, nil, nil, nil, "/bin/probe", "fetch", "http://"+friend+"/"), 0, labUplink+"\n")
	if result := r.exec(id, nil, nil, nil, "/bin/probe", "fetch", "http://"+foe+"/"); result.Code == 0 {
		r.Errorf("reached %s: %s", foe, result.Stdout)
	}
	return info
}

// wantHosts checks that /etc/hosts has what every container's has, and the container's
// own name, unless it is empty; and that programs take it for what it says.
func (r *rig) wantHosts(id, name, addr string) {
	r.Helper()
	want := agentproto.LocalHosts
	if name != "" {
		want += addr + "\t" + name + "\n"
		// Nobody listens there, so what is said is where it was looked for.
		result := r.exec(id, nil, nil, nil, "/bin/probe", "fetch", "http://"+name+":9/")
		if result.Code == 0 || !strings.Contains(result.Stderr, addr+":9") {
			r.Errorf("asked for %s, which is %s: %s", name, addr, result)
		}
	}
	r.expect(r.exec(id, nil, nil, nil, "cat", "/etc/hosts"), 0, want)
}

// eventuallyNobodyOn waits until all sandboxes have given their networks back.
func (r *rig) eventuallyNobodyOn(n *network.Network) {
	r.Helper()
	r.eventually(commandTimeout, func() error {
		infos, err := n.List(r.ctx)
		if err == nil && len(infos) > 0 {
			err = fmt.Errorf("%d sandboxes still have a network", len(infos))
		}
		return err
	})
}

// testDefaultNetwork runs two sandboxes on the default network: they reach what
// the policy allows, and neither what it denies nor each other.
func testDefaultNetwork(r *rig) {
	r.beyond()
	flags, n := r.withNetwork(policy.Policy{Allow: []policy.Rule{{Peers: []string{friend}, Protocol: "tcp", Ports: []string{"80"}}}})
	fetch := func(id, addr string) lab.Result {
		r.Helper()
		return r.exec(id, nil, nil, nil, "/bin/probe", "fetch", "http://"+addr+"/")
	}
	a, b := r.start(append(flags, "--hostname", "name-of-a")), r.start(flags)
	infos, err := n.List(r.ctx)
	if err != nil || len(infos) != 2 {
		r.Fatalf("%d sandboxes have a network: %v", len(infos), err)
	}
	addressOf := map[string]string{}
	for _, id := range []string{a, b} {
		addressOf[id] = infoOf(infos, id).Address.String()
		// The world sees the host's address and not the guest's.
		r.expect(fetch(id, friend), 0, labUplink+"\n")
		conf := r.mustOK(r.exec(id, nil, nil, nil, "cat", "/etc/resolv.conf"))
		if want := "nameserver " + friend + "\n"; conf.Stdout != want {
			r.Errorf("resolv.conf: %q, want %q", conf.Stdout, want)
		}
	}
	r.wantHosts(a, "name-of-a", addressOf[a])
	r.wantHosts(b, "", "")
	for _, addr := range []string{foe, labUplink, "10.77.0.1", addressOf[b]} {
		if result := fetch(a, addr); result.Code == 0 {
			r.Errorf("reached %s: %s", addr, result.Stdout)
		}
	}
	for _, id := range []string{a, b} {
		r.removeContainer(id)
	}
	r.eventuallyNobodyOn(n)
	if err := n.Check(r.ctx, infos[0].ID); err == nil {
		r.Error("a released network is checked as if it were there")
	}
}
