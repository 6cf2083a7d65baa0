// Package netbench measures package network: how long Add, Del and SetPolicy
// take with few and with many sandboxes there. It makes no machines, and a host of
// its own to measure on: a network namespace on Linux, a VNET jail on FreeBSD.
package netbench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"text/tabwriter"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/policy"
)

// fillers is how many at a time make the sandboxes that are there while others are
// measured.
const fillers = 4

// Sample is one verb's times at one population.
type Sample struct {
	Verb      string `json:"verb"`
	Sandboxes int    `json:"sandboxes"`
	// Times are in the order in which they were taken, in nanoseconds.
	Times []time.Duration `json:"times_ns"`
}

// Rate is how often a second the verb was done, one after the other.
func (s Sample) Rate() float64 {
	var sum time.Duration
	for _, t := range s.Times {
		sum += t
	}
	return float64(len(s.Times)) / sum.Seconds()
}

// Quantile is the time that a part q of the samples does not exceed.
func (s Sample) Quantile(q float64) time.Duration {
	sorted := slices.Sorted(slices.Values(s.Times))
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

// Options are what is measured, and where it is written to.
type Options struct {
	// Populations are how many sandboxes are there while it is measured, in
	// ascending order.
	Populations []int
	// Rounds are how often each verb is measured at each.
	Rounds int
	// Dir gets the samples, in network.json, unless it is empty.
	Dir string
}

// Run measures, and prints a table to w as it goes on.
func Run(ctx context.Context, w io.Writer, o Options) error {
	return onHost(ctx, func(on host) error { return run(ctx, w, o, on) })
}

// host runs f on the host that is measured on, from any goroutine.
type host func(f func() error) error

func run(ctx context.Context, w io.Writer, o Options, on host) (err error) {
	state, err := os.MkdirTemp("", "netbench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(state)) }()
	cfg := network.DefaultConfig()
	cfg.State = state
	cfg.Subnet = netip.MustParsePrefix("10.77.0.0/20")
	cfg.Last = netip.MustParseAddr("10.77.4.200")
	cfg.Policy.Allow = []policy.Rule{{Peers: []string{"0.0.0.0/0"}}}
	n, err := network.Open(cfg)
	if err != nil {
		return err
	}
	t := tabwriter.NewWriter(w, 12, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "verb\tsandboxes\tper second\tp50\tp95\t")
	var samples []Sample
	for i, population := range o.Populations {
		there := 0
		if i > 0 {
			there = o.Populations[i-1]
		}
		if err := fill(ctx, n, there, population, on); err != nil {
			return err
		}
		var measured []Sample
		err := on(func() (err error) { measured, err = measure(ctx, n, population, o.Rounds); return err })
		if err != nil {
			return err
		}
		for _, s := range measured {
			fmt.Fprintf(t, "%s\t%d\t%.2f\t%v\t%v\t\n", s.Verb, s.Sandboxes, s.Rate(), s.Quantile(0.5).Round(time.Microsecond), s.Quantile(0.95).Round(time.Microsecond))
		}
		if err := t.Flush(); err != nil {
			return err
		}
		samples = append(samples, measured...)
	}
	if o.Dir == "" {
		return nil
	}
	data, err := json.MarshalIndent(samples, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(o.Dir, "network.json"), data, 0o644)
}

// fill makes sandboxes up to a population.
func fill(ctx context.Context, n *network.Network, there, population int, on host) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(fillers)
	for i := there; i < population; i++ {
		g.Go(func() error {
			return on(func() error {
				_, err := n.Add(ctx, network.Request{ID: fmt.Sprint("there", i)})
				return err
			})
		})
	}
	return g.Wait()
}

func measure(ctx context.Context, n *network.Network, population, rounds int) ([]Sample, error) {
	add, del := Sample{Verb: "ADD", Sandboxes: population}, Sample{Verb: "DEL", Sandboxes: population}
	replace := Sample{Verb: "policy", Sandboxes: population}
	for i := range rounds {
		id := fmt.Sprint("round", i)
		change := n.Config().Policy
		change.Deny = []policy.Rule{{Peers: []string{fmt.Sprintf("203.0.113.%d", i)}}}
		for _, step := range []struct {
			s *Sample
			f func() error
		}{
			{&add, func() error { _, err := n.Add(ctx, network.Request{ID: id}); return err }},
			{&replace, func() error { return n.SetPolicy(ctx, "there0", change) }},
			{&del, func() error { _, err := n.Del(ctx, id); return err }},
		} {
			began := time.Now()
			if err := step.f(); err != nil {
				return nil, err
			}
			step.s.Times = append(step.s.Times, time.Since(began))
		}
	}
	return []Sample{add, del, replace}, nil
}
