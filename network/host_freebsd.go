package network

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/command"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/iface"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/pf"
)

// commandTimeout bounds each run of a tool of the system's.
const commandTimeout = 30 * time.Second

func newHost(cfg Config, s store) (host, error) {
	return &freebsd{cfg: cfg, store: s, pf: pf.Control{Run: run, AtOnce: toolsAtOnce}, kernel: thisKernel{}}, nil
}

// thisKernel is the one that runs.
type thisKernel struct{}

func (thisKernel) egress(bridge string) ([]string, error) { return egressBut(bridge) }
func (thisKernel) knob(name string) (uint32, error)       { return unix.SysctlUint32(name) }
func (thisKernel) create(name string) error               { return iface.Create(name) }
func (thisKernel) isUp(name string) (bool, error)         { return iface.IsUp(name) }
func (thisKernel) describe(name, text string) error       { return iface.Describe(name, text) }

func (thisKernel) description(name string) (string, error) {
	text, err := iface.Description(name)
	if errors.Is(err, unix.ENXIO) {
		err = fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	}
	return text, err
}

// toolsAtOnce bounds how many of them this process runs at a time: fifty callers that
// start one each would all wait for all.
const toolsAtOnce = 8

// run runs a tool of the base system.
var run = command.New(commandTimeout, toolsAtOnce).Run

// egressBut names the interfaces by which guests can leave the host: all that
// have an IPv4 address, but for the loopback and the bridge itself.
func egressBut(bridge string) ([]string, error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("interfaces of the host: %w", err)
	}
	var names []string
	for _, i := range all {
		if i.Flags&net.FlagLoopback != 0 || i.Name == bridge {
			continue
		}
		// One that has gone meanwhile has none.
		addrs, _ := i.Addrs()
		if slices.ContainsFunc(addrs, func(a net.Addr) bool {
			p, err := netip.ParsePrefix(a.String())
			return err == nil && p.Addr().Is4()
		}) {
			names = append(names, i.Name)
		}
	}
	return names, nil
}
