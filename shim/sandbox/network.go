package sandbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"unicode"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/runtime-spec/specs-go"

	agentv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto/v1"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	hostnet "github.com/containerd-shim-bhyve/containerd-shim-bhyve/network"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/join"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/config"
)

// guestInterface is what containers' interface is called where nobody has
// named it.
const guestInterface = "eth0"

// networkRequest is what network the containers of a machine are to have. The
// zero value is none but loopback.
type networkRequest struct {
	// netns is a network namespace of the host's whose interface they get, empty
	// for none.
	netns string
	// own is true if a namespace is to be made on the host for a client to fill,
	// between the creation of the container and its start: by CNI plugins that it
	// runs itself (ctr) or in a hook (nerdctl), and finds by the machine's pid.
	own bool
	// standard is true for the configured default network.
	standard bool
}

// networkFor reads from a spec, as containerd wrote it, what network it wants.
// One that names no network namespace wants the host's, which no guest can have.
func networkFor(spec *specs.Spec, cfg config.Network) networkRequest {
	if spec.Linux == nil {
		return networkRequest{}
	}
	r := networkRequest{standard: cfg.Mode == config.NetworkDefault}
	for _, ns := range spec.Linux.Namespaces {
		switch {
		case ns.Type != specs.NetworkNamespace:
		case ns.Path != "":
			return networkRequest{netns: ns.Path}
		// Hooks are for much else too: where there is no namespace, there is none to fill.
		case cfg.Mode == config.NetworkCNI || join.Supported && runsHooks(spec):
			return networkRequest{own: true}
		}
	}
	return r
}

// runsHooks is true for specs whose client has its say before the process runs.
func runsHooks(spec *specs.Spec) bool {
	//lint:ignore SA1019 Prestart is deprecated and still written.
	return spec.Hooks != nil && len(spec.Hooks.Prestart)+len(spec.Hooks.CreateRuntime) > 0
}

// network is what the containers of a machine have of the host's networks. Its
// methods are for nil as well, which is nothing.
type network struct {
	nic hypervisor.NIC
	// hostname is the containers', empty where they have none of their own.
	hostname string
	// guest is what the agent is told, nil while it is not known.
	guest *agentv1.ConfigureNetworkRequest
	// restored is true if the guest may have the interface of another machine yet.
	restored bool
	// line is nil for what ends by itself.
	line *receipt.Receipt
	// host is the configured network, nil for an interface of a namespace's.
	host *hostnet.Network

	// ns is the namespace that the interface comes from, nil for one of package
	// network's.
	ns *join.Namespace
	// told is true once the agent has taken guest. It is written by who has the
	// machine's turn (vm.admitting).
	told bool
}

// wanted says whether a machine needs an interface for it.
func (r networkRequest) wanted() bool { return r.netns != "" || r.own || r.standard }

// newNetwork is what r asks for, with nothing taken from the host yet; nil if it
// asks for nothing. Its receipt comes before the machine's: receipts are undone
// backwards, and on FreeBSD a tap cannot be destroyed before its machine has ended.
func newNetwork(r machineRequest, book *receipt.Book) (*network, error) {
	if !r.network.wanted() {
		return nil, nil
	}
	n := &network{hostname: r.hostname}
	if !r.network.standard {
		return n, nil
	}
	cfg, err := hostnet.LoadConfig(r.config.Network.Config)
	if err != nil {
		return nil, err
	}
	if n.host, err = hostnet.Open(cfg); err != nil {
		return nil, err
	}
	n.line, err = book.Write(hostnet.Receipt{Config: cfg, ID: machineID(r)})
	return n, err
}

// open takes it from the host: before the machine is made, or with the port of
// one that is there. The caller closes n after an error, too.
func (n *network) open(ctx context.Context, r machineRequest, port *hypervisor.NIC, book *receipt.Book) error {
	switch {
	case n == nil:
		return nil
	case n.host != nil:
		return n.add(ctx, r, port)
	}
	return n.join(ctx, r, port, book)
}

// add gives the machine an address of the configured network.
func (n *network) add(ctx context.Context, r machineRequest, port *hypervisor.NIC) error {
	rules, err := n.host.Config().PolicyNamed(r.config.Network.Policy)
	if err != nil {
		return err
	}
	request := hostnet.Request{ID: machineID(r), Policy: &rules}
	if port != nil {
		request.Port = &hostnet.Port{NetNS: port.NetNS, Tap: port.Tap}
	}
	result, err := n.host.Add(ctx, request)
	if err != nil {
		return err
	}
	n.nic = hypervisor.NIC{Tap: result.Tap, MAC: net.HardwareAddr(result.MAC)}
	if port != nil {
		n.nic.MAC = port.MAC
	}
	n.guest = configurationOf(result, n.nic.MAC)
	n.guest.Hosts = hostsOf(n.hostname, n.guest)
	return nil
}

// configurationOf is what a guest is told of a network, whose device was made
// with the address device. It is alone in it: even its gateway is reached by a
// route of its own.
func configurationOf(r *hostnet.Result, device []byte) *agentv1.ConfigureNetworkRequest {
	addr, gateway := r.Address.String(), r.Gateway.String()
	c := &agentv1.ConfigureNetworkRequest{
		Interfaces: []*agentv1.Interface{{
			Device: device, Name: guestInterface, Mac: r.MAC, Mtu: uint32(r.MTU), Addresses: []string{addr + "/32"},
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

// join has the machine's tap in a network namespace of the host's.
func (n *network) join(ctx context.Context, r machineRequest, port *hypervisor.NIC, book *receipt.Book) (err error) {
	switch {
	case !r.network.own:
		n.ns, err = join.Open(r.network.netns)
	case port != nil:
		// Its process is in it, where clients look.
		n.ns, err = join.Open(port.NetNS)
	default:
		n.ns, err = join.New()
	}
	if err != nil {
		return err
	}
	if !r.network.own {
		if n.line, err = book.Write(n.ns.Receipt()); err != nil {
			return err
		}
	}
	n.nic = hypervisor.NIC{Tap: join.Tap, NetNS: n.ns.Path()}
	if port != nil {
		n.nic.MAC, err = port.MAC, n.ns.Plug(port.NetNS, port.Tap)
	} else {
		n.nic.MAC, err = n.ns.AddTap()
	}
	if err != nil || r.saved != nil {
		// A guest that was restored has to forget its old address before it is led
		// anywhere: that comes with its container's start.
		return err
	}
	return n.connect(ctx)
}

// connect looks whether there is an interface to be had from the namespace, and
// takes it.
func (n *network) connect(ctx context.Context) error {
	i, err := n.ns.Connect()
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if len(i.Ignored) > 0 {
		log.G(ctx).Warnf("a machine has one network interface: %s is used, and ignored are %v", i.Name, i.Ignored)
	}
	n.guest = takeOver(n.nic.MAC, i)
	n.guest.Hosts = hostsOf(n.hostname, n.guest)
	return nil
}

// takeOver is what a guest is told of an interface of the host's.
func takeOver(device []byte, i *join.Interface) *agentv1.ConfigureNetworkRequest {
	nic := &agentv1.Interface{Device: device, Name: i.Name, Mac: i.MAC, Mtu: uint32(i.MTU)}
	for _, a := range i.Addresses {
		nic.Addresses = append(nic.Addresses, a.String())
	}
	c := &agentv1.ConfigureNetworkRequest{Interfaces: []*agentv1.Interface{nic}}
	for _, r := range i.Routes {
		route := &agentv1.Route{Destination: r.Destination.String(), Interface: i.Name, OnLink: r.OnLink, Metric: uint32(r.Metric)}
		if r.Gateway.IsValid() {
			route.Gateway = r.Gateway.String()
		}
		if r.Source.IsValid() {
			route.Source = r.Source.String()
		}
		c.Routes = append(c.Routes, route)
	}
	return c
}

// hostsOf are the addresses by which containers find themselves by their own name.
func hostsOf(name string, c *agentv1.ConfigureNetworkRequest) []*agentv1.HostEntry {
	// The kernel takes any name; that file does not.
	if name == "" || strings.ContainsFunc(name, func(r rune) bool { return r == '#' || unicode.IsSpace(r) || unicode.IsControl(r) }) {
		return nil
	}
	var hosts []*agentv1.HostEntry
	for _, nic := range c.Interfaces {
		for _, text := range nic.Addresses {
			// Those of IPv6 that are of the link alone mean nothing without its name.
			if p, err := netip.ParsePrefix(text); err == nil && !p.Addr().IsLinkLocalUnicast() {
				hosts = append(hosts, &agentv1.HostEntry{Address: p.Addr().String(), Names: []string{name}})
			}
		}
	}
	return hosts
}

// device is the machine's.
func (n *network) device() *hypervisor.NIC {
	if n == nil {
		return nil
	}
	return &n.nic
}

// resumes makes the interface one that a guest knows by a device with this address,
// and with a configuration that is not its own.
func (n *network) resumes(device net.HardwareAddr) {
	if n == nil {
		return
	}
	n.restored, n.nic.MAC = true, device
	if n.guest != nil {
		n.guest.Interfaces[0].Device = device
	}
}

// address is what the guest's device has once its container has been admitted, nil
// if there is none.
func (n *network) address() net.HardwareAddr {
	switch {
	case n == nil:
		return nil
	case n.told && len(n.guest.Interfaces[0].Mac) > 0:
		return n.guest.Interfaces[0].Mac
	}
	return n.nic.MAC
}

// close gives everything back. It uses the values of ctx, not its end.
func (n *network) close(ctx context.Context) error {
	if n == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), destroyWait)
	defer cancel()
	var errs []error
	if n.line != nil {
		errs = append(errs, n.line.Undo(ctx))
	}
	if n.ns != nil {
		if err := n.ns.Close(); !errors.Is(err, os.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// admitNetwork is for a container that is about to start: if a client has filled
// the machine's namespace by now, the guest gets what is in it.
func (v *vm) admitNetwork(ctx context.Context) error {
	n := v.network
	if n == nil || n.ns == nil {
		return nil
	}
	select {
	case v.admitting <- struct{}{}:
		defer func() { <-v.admitting }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if n.told {
		return nil
	}
	if n.guest == nil {
		if err := n.connect(ctx); err != nil {
			return err
		}
	}
	return v.configureNetwork(ctx)
}

// configureNetwork tells the guest of its containers' network. What it has of
// another's it loses, also while nothing is known of its own.
func (v *vm) configureNetwork(ctx context.Context) error {
	if v.network == nil || v.network.guest == nil && !v.network.restored {
		return nil
	}
	config := cmp.Or(v.network.guest, &agentv1.ConfigureNetworkRequest{})
	ctx, cancel := context.WithTimeout(ctx, v.agentTimeout)
	defer cancel()
	ctx, release := whileAlive(ctx, v.Machine)
	defer release()
	if _, err := v.agent.net.Configure(ctx, config); err != nil {
		return fmt.Errorf("configure the containers' network: %w", err)
	}
	v.network.told = v.network.guest != nil
	return nil
}

// files are those of a container's root that the network brings. Who has filled
// a namespace brings them himself.
func (r networkRequest) files() []string {
	if r.standard {
		return []string{"/etc/resolv.conf", "/etc/hosts"}
	}
	return nil
}
