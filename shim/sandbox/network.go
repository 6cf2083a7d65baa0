package sandbox

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/runtime-spec/specs-go"

	agentv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto/v1"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	hostnet "github.com/containerd-shim-bhyve/containerd-shim-bhyve/network"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/config"
)

// guestInterface is what containers' interface is called where nobody has
// named it.
const guestInterface = "eth0"

// network is what the containers of a machine have of the host's networks. Its
// methods are for nil as well, which is nothing.
type network struct {
	nic   hypervisor.NIC
	guest *agentv1.ConfigureNetworkRequest
	line  *receipt.Receipt
}

// openNetwork takes what r asks for from the host, before the machine is made.
// nil if it asks for nothing.
func openNetwork(ctx context.Context, r machineRequest, book *receipt.Book) (*network, error) {
	switch {
	case r.netns != "":
		return joinNetwork(ctx, r, book)
	case r.config.Network.Mode == config.NetworkDefault:
		return addNetwork(ctx, r, book)
	}
	return nil, nil
}

// addNetwork gives the machine an address of the configured network.
func addNetwork(ctx context.Context, r machineRequest, book *receipt.Book) (_ *network, err error) {
	cfg, err := hostnet.LoadConfig(r.config.Network.Config)
	if err != nil {
		return nil, err
	}
	n, err := hostnet.Open(cfg)
	if err != nil {
		return nil, err
	}
	line, err := book.Write(hostnet.Receipt{Config: cfg, ID: machineID(r)})
	if err != nil {
		return nil, err
	}
	nw := &network{line: line}
	result, err := n.Add(ctx, hostnet.Request{ID: machineID(r)})
	if err != nil {
		if cerr := nw.close(ctx); cerr != nil {
			log.G(ctx).WithError(cerr).Error("network that could not be had could not be given back")
		}
		return nil, err
	}
	nw.nic = hypervisor.NIC{Tap: result.Tap, MAC: result.MAC}
	nw.guest = configurationOf(result)
	return nw, nil
}

// configurationOf is what a guest is told of a network. It is alone in it: even
// its gateway is reached by a route of its own.
func configurationOf(r *hostnet.Result) *agentv1.ConfigureNetworkRequest {
	addr, gateway := r.Address.String(), r.Gateway.String()
	c := &agentv1.ConfigureNetworkRequest{
		Interfaces: []*agentv1.Interface{{
			Device: r.MAC, Name: guestInterface, Mac: r.MAC, Mtu: uint32(r.MTU), Addresses: []string{addr + "/32"},
		}},
		Routes: []*agentv1.Route{
			{Destination: gateway + "/32", Interface: guestInterface},
			{Destination: "0.0.0.0/0", Gateway: gateway, Interface: guestInterface},
		},
		Dns: &agentv1.DNS{},
	}
	for _, server := range r.DNS {
		c.Dns.Servers = append(c.Dns.Servers, server.String())
	}
	return c
}

// device is the machine's.
func (n *network) device() *hypervisor.NIC {
	if n == nil {
		return nil
	}
	return &n.nic
}

// close gives everything back. It uses the values of ctx, not its end.
func (n *network) close(ctx context.Context) error {
	if n == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), destroyWait)
	defer cancel()
	return n.line.Undo(ctx)
}

// configureNetwork tells the guest of its containers' network.
func (v *vm) configureNetwork(ctx context.Context) error {
	if v.network == nil || v.network.guest == nil {
		return nil
	}
	ctx, release := whileAlive(ctx, v.Machine)
	defer release()
	if _, err := v.agent.net.Configure(ctx, v.network.guest); err != nil {
		return fmt.Errorf("configure the containers' network: %w", err)
	}
	return nil
}

// networkFiles are those of a container's root that the default network brings.
// Who has given it a network of his own brings them himself.
func networkFiles(spec *specs.Spec, cfg config.Config) []string {
	if cfg.Network.Mode != config.NetworkDefault || spec.Linux == nil {
		return nil
	}
	for _, ns := range spec.Linux.Namespaces {
		if ns.Type == specs.NetworkNamespace && ns.Path != "" {
			return nil
		}
	}
	return []string{"/etc/resolv.conf"}
}

func joinNetwork(context.Context, machineRequest, *receipt.Book) (*network, error) {
	return nil, fmt.Errorf("network namespace of the host: %w", errdefs.ErrNotImplemented)
}
