package command

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/ttrpc"
	"github.com/urfave/cli/v3"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto"
	agentv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto/v1"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/pool"
	poolv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/pool/api/v1"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/pool/client"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/thaw"
)

// sample is one claim, in milliseconds since it began: when the machine had
// changed hands, when it ran, and when its agent had answered a fresh nonce.
type sample struct {
	Tier    string  `json:"tier"`
	Owned   float64 `json:"a_owned_ms"`
	Running float64 `json:"b_running_ms"`
	Agent   float64 `json:"c_agent_ms"`
	// Machine and the rest are the proof: which machine, how long it had waited,
	// and what its kernel says of itself.
	Machine string  `json:"machine"`
	Age     float64 `json:"age_seconds"`
	BootID  string  `json:"boot_id"`
	Uptime  float64 `json:"uptime_seconds"`
}

func benchCommand(backend hypervisor.Backend) *cli.Command {
	return &cli.Command{
		Name:      "bench",
		Usage:     "claim machines of a template and destroy them, and say how long it took",
		ArgsUsage: "NAME",
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "count", Aliases: []string{"n"}, Value: 10, Usage: "claims"},
			&cli.IntFlag{Name: "concurrency", Aliases: []string{"c"}, Value: 1, Usage: "claims at the same time"},
			&cli.BoolFlag{Name: "boot", Usage: "boot machines where no tier has one"},
			&cli.BoolFlag{Name: "json", Usage: "every sample, for a program to read"},
		},
		Action: connected(1, 1, 0, func(ctx context.Context, c *cli.Command, conn *client.Client) error {
			samples, err := claimAll(ctx, c, conn, backend)
			if err != nil {
				return err
			}
			if c.Bool("json") {
				out := json.NewEncoder(c.Root().Writer)
				out.SetIndent("", "  ")
				return out.Encode(samples)
			}
			return printSamples(c, samples)
		}),
	}
}

// claimAll claims as many machines as wanted, and holds those of one round until
// all of it is there, so that so many run at the same time.
func claimAll(ctx context.Context, c *cli.Command, conn *client.Client, backend hypervisor.Backend) ([]sample, error) {
	status, err := conn.Status(ctx, nil)
	if err != nil {
		return nil, err
	}
	name := c.Args().First()
	i := slices.IndexFunc(status.Templates, func(t *poolv1.TemplateStatus) bool { return t.Template.Name == name })
	if i < 0 {
		return nil, fmt.Errorf("template %q: %w", name, os.ErrNotExist)
	}
	want := client.Want{Shape: status.Templates[i].Template.Shape, Template: name, Boot: c.Bool("boot")}
	dir, err := os.MkdirTemp("", "bhyve-pool-bench-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	count, concurrency := c.Int("count"), max(1, c.Int("concurrency"))
	samples := make([]sample, 0, count)
	for len(samples) < count {
		round := make([]sample, min(concurrency, count-len(samples)))
		errs := make([]error, len(round))
		var wg sync.WaitGroup
		for i := range round {
			wg.Go(func() {
				round[i], errs[i] = claimOne(ctx, c.String(socketFlag), want, backend, filepath.Join(dir, fmt.Sprint(i)))
			})
		}
		wg.Wait()
		if err := errors.Join(errs...); err != nil {
			return samples, err
		}
		samples = append(samples, round...)
	}
	return samples, nil
}

// claimOne is one claim on a connection of its own, as a shim makes it.
func claimOne(ctx context.Context, socket string, want client.Want, backend hypervisor.Backend, bookPath string) (_ sample, err error) {
	book, err := receipt.Open(bookPath)
	if err != nil {
		return sample{}, err
	}
	began := time.Now()
	conn, err := client.Dial(ctx, socket)
	if err != nil {
		return sample{}, err
	}
	defer conn.Close()
	m, err := conn.Claim(ctx, want, backend, book)
	if err != nil {
		return sample{}, err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
		defer cancel()
		err = errors.Join(err, m.Destroy(ctx))
	}()
	hello, err := pool.Prove(ctx, m.Machine)
	if err != nil {
		return sample{}, err
	}
	answered := time.Since(began)
	// The boot id is drawn only now.
	proof, err := thawed(ctx, m.Machine)
	if err != nil {
		return sample{}, err
	}
	return sample{
		Tier:  strings.ToLower(strings.TrimPrefix(m.Tier.String(), "TIER_")),
		Owned: ms(m.Owned), Running: ms(m.Running), Agent: ms(answered),
		Machine: m.ID(), Age: m.Age.Seconds(), BootID: proof.BootID, Uptime: hello.Uptime.AsDuration().Seconds(),
	}, nil
}

func thawed(ctx context.Context, m hypervisor.Machine) (thaw.Proof, error) {
	conn, err := m.Dial(ctx, agentproto.PortControl)
	if err != nil {
		return thaw.Proof{}, err
	}
	c := ttrpc.NewClient(conn)
	defer c.Close()
	return thaw.Do(ctx, agentv1.NewThawClient(c), thaw.Identity{})
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// percentile is by nearest rank: a value that was measured, not one in between.
func percentile(values []float64, p float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[max(int(math.Ceil(p/100*float64(len(sorted)))), 1)-1]
}

func printSamples(c *cli.Command, samples []sample) error {
	clocks := []struct {
		name string
		of   func(sample) float64
	}{
		{"a: machine owned", func(s sample) float64 { return s.Owned }},
		{"b: machine runs", func(s sample) float64 { return s.Running }},
		{"c: agent answered", func(s sample) float64 { return s.Agent }},
	}
	w := table(c)
	fmt.Fprintln(w, "TIER\tCLOCK\tSAMPLES\tMEAN ms\tP50\tP95\tP99")
	for _, tier := range []string{"hot", "cold", "boot"} {
		for _, clock := range clocks {
			var values []float64
			sum := 0.0
			for _, s := range samples {
				if s.Tier == tier {
					values = append(values, clock.of(s))
					sum += clock.of(s)
				}
			}
			if values == nil {
				continue
			}
			fmt.Fprintf(w, "%s\t%s\t%d\t%.1f\t%.1f\t%.1f\t%.1f\n", tier, clock.name, len(values), sum/float64(len(values)),
				percentile(values, 50), percentile(values, 95), percentile(values, 99))
		}
	}
	return w.Flush()
}
