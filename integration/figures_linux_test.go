package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/pattern"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/netns"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/policy"
)

// testFigures measures round trips and throughput on the default network, from a
// guest and from a namespace behind a veth pair, under the same policy: to the
// host, and to another of its kind. Figures are only logged: `make bench` asks for
// them.
func testFigures(r *rig) {
	if os.Getenv("BHYVE_FIGURES") == "" {
		r.Skip("BHYVE_FIGURES is not set")
	}
	const port, rounds, mib = 7000, 200, 16
	service := policy.Rule{Protocol: "tcp", Ports: []string{fmt.Sprint(port)}}
	to := func(peer string) policy.Rule { s := service; s.Peers = []string{peer}; return s }
	flags, n := r.withNetwork(policy.Policy{
		Allow:  []policy.Rule{to("host"), to("10.77.0.0/24")},
		Accept: []policy.Rule{to("10.77.0.0/24")},
	})
	server, client := r.start(flags, "/bin/probe", "answer", fmt.Sprint(port)), r.start(flags)
	there := r.networkOf(n, server)
	serve := func() {
		l, err := net.Listen("tcp4", fmt.Sprintf(":%d", port))
		if err != nil {
			r.Fatal(err)
		}
		r.Cleanup(func() { l.Close() })
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer conn.Close()
					pattern.Answer(conn)
				}()
			}
		}()
	}
	serve()
	fromGuest := func(addr string) (m pattern.Measured) {
		r.Helper()
		result := r.mustOK(r.exec(client, nil, nil, nil, "/bin/probe", "measure", addr, fmt.Sprint(rounds), fmt.Sprint(mib)))
		if err := json.Unmarshal([]byte(result.Stdout), &m); err != nil {
			r.Fatal(err)
		}
		return m
	}
	near, nearby := r.veth(n, "veth0"), r.veth(n, "veth1")
	if err := netns.Do(nearby.ns, func() error { serve(); return nil }); err != nil {
		r.Fatal(err)
	}
	fromVeth := func(addr string) pattern.Measured {
		r.Helper()
		m, err := pattern.Measure(func() (conn net.Conn, err error) {
			err = netns.Do(near.ns, func() error {
				conn, err = net.DialTimeout("tcp4", addr, commandTimeout)
				return err
			})
			return conn, err
		}, rounds, mib)
		if err != nil {
			r.Fatal(err)
		}
		return m
	}
	var table bytes.Buffer
	t := tabwriter.NewWriter(&table, 0, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "from\tto\tround trip p50\tp95\tMiB/s\t")
	for _, c := range []struct {
		from, to string
		m        pattern.Measured
	}{
		{"veth", "host", fromVeth(fmt.Sprintf("%s:%d", near.Gateway, port))},
		{"veth", "veth", fromVeth(fmt.Sprintf("%s:%d", nearby.Address, port))},
		{"guest", "host", fromGuest(fmt.Sprintf("%s:%d", there.Gateway, port))},
		{"guest", "guest", fromGuest(fmt.Sprintf("%s:%d", there.Address, port))},
	} {
		if len(c.m.RoundTrips) != rounds || c.m.Took <= 0 {
			r.Errorf("%s to %s: %d round trips, %v", c.from, c.to, len(c.m.RoundTrips), c.m.Took)
		}
		slices.Sort(c.m.RoundTrips)
		quantile := func(q int) time.Duration { return c.m.RoundTrips[rounds*q/100].Round(time.Microsecond) }
		fmt.Fprintf(t, "%s\t%s\t%v\t%v\t%.1f\t\n", c.from, c.to, quantile(50), quantile(95), float64(mib)/c.m.Took.Seconds())
	}
	if err := t.Flush(); err != nil {
		r.Fatal(err)
	}
	r.Logf("on this machine, now:\n%s", strings.TrimRight(table.String(), "\n"))
}

// attached is a namespace on a network of ours.
type attached struct {
	*network.Result
	ns *os.File
}

// veth makes a namespace and puts it on the network, as cni-bhyve does.
func (r *rig) veth(n *network.Network, id string) attached {
	r.Helper()
	ns, err := netns.New()
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { ns.Close() })
	path := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns.Fd())
	result, err := n.Add(r.ctx, network.Request{ID: id, NetNS: path, Interface: "eth0"})
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() {
		if _, err := n.Del(context.WithoutCancel(r.ctx), id); err != nil {
			r.Error(err)
		}
	})
	return attached{result, ns}
}
