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

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/policy"
)

// populations are how many sandboxes are there while it is measured.
var populations = []int{1, 100, 500}

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

// Run measures each verb so many times at each population, prints a table to w and
// writes the samples to network.json in dir, unless that is empty.
func Run(ctx context.Context, w io.Writer, dir string, rounds int) error {
	return onHost(ctx, func() error { return run(ctx, w, dir, rounds) })
}

func run(ctx context.Context, w io.Writer, dir string, rounds int) (err error) {
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
	samples, err := measure(ctx, n, rounds)
	if err != nil {
		return err
	}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "verb\tsandboxes\tper second\tp50\tp95\t")
	for _, s := range samples {
		fmt.Fprintf(t, "%s\t%d\t%.0f\t%v\t%v\t\n", s.Verb, s.Sandboxes, s.Rate(), s.Quantile(0.5).Round(time.Microsecond), s.Quantile(0.95).Round(time.Microsecond))
	}
	if err := t.Flush(); err != nil || dir == "" {
		return err
	}
	data, err := json.MarshalIndent(samples, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "network.json"), data, 0o644)
}

func measure(ctx context.Context, n *network.Network, rounds int) ([]Sample, error) {
	var samples []Sample
	there := 0
	for _, population := range populations {
		for ; there < population; there++ {
			if _, err := n.Add(ctx, network.Request{ID: fmt.Sprint("there", there)}); err != nil {
				return nil, err
			}
		}
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
		samples = append(samples, add, del, replace)
	}
	return samples, nil
}
