package check

import (
	"context"
	"fmt"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/pf"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/config"
)

// networks are what containers' network takes, where the configuration says that they
// have the default one: others are their clients' to look after.
func networks() []item {
	c, err := config.FromOptions(nil)
	if err != nil || c.Network.Mode != config.NetworkDefault {
		return nil
	}
	nw, err := network.LoadConfig(c.Network.Config)
	if err == nil {
		_, err = nw.PolicyNamed(c.Network.Policy)
	}
	described := item{name: "network configuration", look: func(context.Context) (string, error) {
		return fmt.Sprintf("%s to %s on %s", nw.First, nw.Last, nw.Bridge), err
	}}
	if err != nil {
		return []item{described}
	}
	return append([]item{described}, hostNetwork(nw)...)
}

// pfRules are what pf has to be told once by the administrator, of which the link of
// machines needs a part.
func pfRules(run pf.Run, bridge string) item {
	return item{name: "pf(4) for the network", look: func(ctx context.Context) (string, error) {
		return "its ruleset has the lines for " + bridge, pf.Control{Run: run}.Check(ctx, bridge)
	}}
}
