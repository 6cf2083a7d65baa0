package network

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/pf"
)

// commandTimeout bounds each run of a tool of the system's.
const commandTimeout = 30 * time.Second

func newHost(cfg Config, s store) (host, error) {
	return &freebsd{cfg: cfg, store: s, pf: pf.Control{Run: run}, egress: egressBut}, nil
}

// tools bounds how many of them this process runs at a time: fifty callers that
// start one each would all wait for all.
var tools = make(chan struct{}, 8)

// run runs a tool of the base system. An error has what it said.
func run(ctx context.Context, stdin string, argv ...string) ([]byte, error) {
	select {
	case tools <- struct{}{}:
		defer func() { <-tools }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = []string{"LC_ALL=C"}
	cmd.Stdin = strings.NewReader(stdin)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return out, nil
}

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
