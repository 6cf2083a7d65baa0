// Package cniplugin is the CNI plugin cni-bhyve (the specification's versions
// up to 1.1.0): ADD, DEL, CHECK, GC and STATUS are those of package network, for
// a network namespace instead of a machine. It stands first in a list of
// plugins; others may follow.
package cniplugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/policy"
)

// timeout bounds one call of the plugin.
const timeout = time.Minute

// conf is the plugin's part of a network configuration.
type conf struct {
	types.NetConf
	// Config is the network's file; empty for network.DefaultPath.
	Config string `json:"config"`
	// Policy is for every container of this CNI network, in place of the file's.
	Policy        *policy.Policy `json:"policy"`
	RuntimeConfig struct {
		// PortMappings are what `-p` and CRI ask for, where the configuration has
		// "capabilities": {"portMappings": true}.
		PortMappings []struct {
			HostPort      uint16 `json:"hostPort"`
			ContainerPort uint16 `json:"containerPort"`
			Protocol      string `json:"protocol"`
			HostIP        string `json:"hostIP"`
		} `json:"portMappings"`
	} `json:"runtimeConfig"`
}

// Main is the whole program.
func Main() {
	skel.PluginMainFuncs(skel.CNIFuncs{Add: add, Del: del, Check: check, GC: gc, Status: status}, version.All, "cni-bhyve: a network with a policy for each sandbox")
}

// open reads the configuration that a call was given.
func open(args *skel.CmdArgs) (*conf, *network.Network, error) {
	c := &conf{}
	if err := json.Unmarshal(args.StdinData, c); err != nil {
		return nil, nil, types.NewError(types.ErrDecodingFailure, "network configuration", err.Error())
	}
	cfg, err := network.LoadConfig(c.Config)
	if err != nil {
		return nil, nil, types.NewError(types.ErrInvalidNetworkConfig, "network configuration", err.Error())
	}
	n, err := network.Open(cfg)
	return c, n, err
}

// idOf names an attachment: a container may have several interfaces.
func idOf(container, ifname string) string { return container + "." + ifname }

func (c *conf) policy(fallback policy.Policy) (policy.Policy, error) {
	p := fallback
	if c.Policy != nil {
		p = *c.Policy
	}
	for _, m := range c.RuntimeConfig.PortMappings {
		port := policy.Port{Host: m.HostPort, Guest: m.ContainerPort, Protocol: m.Protocol}
		if m.HostIP != "" {
			addr, err := netip.ParseAddr(m.HostIP)
			if err != nil {
				return p, types.NewError(types.ErrInvalidNetworkConfig, "port mapping", err.Error())
			}
			port.HostIP = addr
		}
		p.Publish = append(p.Publish, port)
	}
	return p, nil
}

func add(args *skel.CmdArgs) error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	c, n, err := open(args)
	if err != nil {
		return err
	}
	if c.RawPrevResult != nil {
		return types.NewError(types.ErrInvalidNetworkConfig, "cni-bhyve makes the interface: it has to be the first plugin of the list", "")
	}
	p, err := c.policy(n.Config().Policy)
	if err != nil {
		return err
	}
	result, err := n.Add(ctx, network.Request{ID: idOf(args.ContainerID, args.IfName), Policy: &p, NetNS: args.Netns, Interface: args.IfName, Network: c.Name})
	if err != nil {
		return err
	}
	return types.PrintResult(result.CNI(args.IfName, args.Netns), c.CNIVersion)
}

func del(args *skel.CmdArgs) error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	_, n, err := open(args)
	if err != nil {
		return err
	}
	_, err = n.Del(ctx, idOf(args.ContainerID, args.IfName))
	return err
}

func check(args *skel.CmdArgs) error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	_, n, err := open(args)
	if err != nil {
		return err
	}
	return n.Check(ctx, idOf(args.ContainerID, args.IfName))
}

// gc releases what is not on the runtime's list, of what was asked for in the name
// of the same CNI network: the list has no others, and several may share a bridge.
// Sandboxes that were not made through CNI are none of its business.
func gc(args *skel.CmdArgs) error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	c, n, err := open(args)
	if err != nil {
		return err
	}
	keep := map[string]bool{}
	for _, a := range c.ValidAttachments {
		keep[idOf(a.ContainerID, a.IfName)] = true
	}
	infos, err := n.List(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, i := range infos {
		if i.NetNS != "" && i.Network == c.Name && !keep[i.ID] {
			_, err := n.Del(ctx, i.ID)
			errs = append(errs, err)
		}
	}
	_, err = n.GC(ctx, nil)
	return errors.Join(append(errs, err)...)
}

func status(args *skel.CmdArgs) error {
	_, _, err := open(args)
	if err != nil {
		return fmt.Errorf("not ready: %w", err)
	}
	return nil
}
