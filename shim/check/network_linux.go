package check

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/netns"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/nft"
)

func hostNetwork(cfg network.Config) []item {
	return []item{
		{name: "network", look: func(ctx context.Context) (string, error) { return tryNetwork(ctx, cfg) }},
		{name: "IP forwarding", look: func(context.Context) (string, error) { return forwarding("/proc/sys/net/ipv4/ip_forward") }},
		{name: "other firewalls", optional: true, look: func(context.Context) (string, error) { return firewalls(cfg.Bridge) }},
	}
}

// tryNetwork makes the network and one sandbox's on it, in a network namespace that
// ends with it: whatever of the kernel's is missing shows only then.
func tryNetwork(ctx context.Context, cfg network.Config) (_ string, err error) {
	if cfg.State, err = os.MkdirTemp("", "bhyve-check-"); err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(cfg.State)) }()
	ns, err := netns.New()
	if err != nil {
		return "", err
	}
	defer ns.Close()
	n, err := network.Open(cfg)
	if err != nil {
		return "", err
	}
	const id = "check"
	err = netns.Do(ns, func() error {
		if _, err := n.Add(ctx, network.Request{ID: id}); err != nil {
			return err
		}
		err := n.Check(ctx, id)
		_, derr := n.Del(ctx, id)
		return errors.Join(err, derr)
	})
	if err != nil {
		return "", fmt.Errorf("%w (in the kernel or as modules it takes bridge, tun, cls_bpf, sch_ingress, nf_conntrack_netlink, and nf_tables with its ct, connlimit, limit, log, masq and nat)", err)
	}
	return "made one, and a sandbox's place on it, and removed them", nil
}

// forwarding is for what leaves the host, which the first sandbox switches on.
func forwarding(knob string) (string, error) {
	const mend = `, and guests reach nothing beyond the host: "sysctl -w net.ipv4.ip_forward=1" where that is allowed`
	value, err := os.ReadFile(knob)
	if err != nil {
		return "", fmt.Errorf("%w%s", err, mend)
	}
	if strings.TrimSpace(string(value)) == "1" {
		return "on", nil
	}
	f, err := os.OpenFile(knob, os.O_WRONLY, 0)
	if err != nil {
		return "", fmt.Errorf("it is off and cannot be switched on (%w)%s", err, mend)
	}
	return "off, until the first sandbox switches it on", f.Close()
}

// firewalls looks for what others stop in spite of our policies.
func firewalls(bridge string) (string, error) {
	obstacles, err := nft.Table{Bridge: bridge}.Obstacles()
	if err != nil {
		return "", err
	}
	if len(obstacles) > 0 {
		return "", fmt.Errorf("%s: what is forwarded is dropped there unless a rule accepts it, and none names %s: let it accept iifname and oifname %s, the policies of sandboxes deny the rest",
			strings.Join(obstacles, ", "), bridge, bridge)
	}
	return "none in nf_tables stops what is forwarded", nil
}
