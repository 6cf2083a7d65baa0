//go:build linux

package bench

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor/host"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/image"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/lab"
)

// Options say how much is measured.
type Options struct {
	// Samples is how many are taken of each tier one after the other, and Execs
	// how many commands are run with each runtime.
	Samples, Execs int
	// Concurrency are the numbers of containers that are started at once. Tiers
	// that boot a machine for each are measured up to MaxBoots at once.
	Concurrency []int
	MaxBoots    int
	// Waiting is how many restored machines are measured while they wait, beside
	// those of each concurrency. 0 is none.
	Waiting int
	// MinimalGuest is the directory of a guest image with a minimal kernel, empty
	// for none.
	MinimalGuest string
	// Tiers, if set, are the only ones.
	Tiers []string
	// Progress is told what is going on.
	Progress func(format string, args ...any)
}

// memoryMiB is the guests' memory, the same in every tier.
const memoryMiB = 256

// run is one run under way.
type run struct {
	Options
	lab    *lab.Lab
	image  containerd.Image
	report *Report
	serial int
}

// Run measures one tier after the other, at each concurrency in turn, so that
// what else the machine does meets all of them. The report holds what was
// measured before an error.
func Run(ctx context.Context, l *lab.Lab, o Options) (*Report, error) {
	ctx = l.Context(ctx)
	img, err := l.Client.GetImage(ctx, lab.Image)
	if err != nil {
		return nil, err
	}
	r := &run{Options: o, lab: l, image: img, report: newReport(time.Now())}
	r.report.MemoryMiB, r.report.MaxBoots = memoryMiB, o.MaxBoots
	if caps, err := host.Backend().Capabilities(ctx); err == nil {
		r.report.Accelerated = caps.Accelerated
	}
	if err := r.execs(ctx); err != nil {
		return r.report, err
	}
	for _, n := range o.Concurrency {
		for _, t := range r.table() {
			if t.boots && n > o.MaxBoots || !o.wants(t.name) {
				continue
			}
			if err := t.measure(ctx, t.name, n); err != nil {
				return r.report, fmt.Errorf("%s, %d at once: %w", t.name, n, err)
			}
		}
	}
	if o.Waiting > 0 && o.wants(TierDurablePrewarm) {
		if err := r.waiting(ctx, o.Waiting); err != nil {
			return r.report, fmt.Errorf("%d machines that wait: %w", o.Waiting, err)
		}
	}
	return r.report, r.distinct()
}

func (o Options) wants(tier string) bool {
	if len(o.Tiers) == 0 {
		return true
	}
	for _, t := range o.Tiers {
		if t == tier {
			return true
		}
	}
	return false
}

// tier is how one row of the table is measured. boots is true where each
// machine costs a boot.
type tier struct {
	name    string
	boots   bool
	measure func(ctx context.Context, name string, n int) error
}

func (r *run) table() []tier {
	list := []tier{
		{TierRunc, false, r.runc},
		{TierBootFull, true, func(ctx context.Context, name string, n int) error { return r.boots(ctx, name, "", n) }},
	}
	if r.MinimalGuest != "" {
		list = append(list, tier{TierBootMinimal, true, func(ctx context.Context, name string, n int) error {
			return r.boots(ctx, name, r.MinimalGuest, n)
		}})
	}
	return append(list,
		tier{TierPrewarm, true, r.prewarm},
		tier{TierDurable, false, r.durable},
		tier{TierDurablePrewarm, false, r.prewarm},
		tier{TierDurableRehearsed, false, r.prewarm},
	)
}

// rounds is how often n at once are started.
func (r *run) rounds(n int) int { return max(1, r.Samples/n) }

// start starts n containers at once and keeps their samples.
func (r *run) start(ctx context.Context, s *subject, n int) error {
	samples := make([]*Sample, n)
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		r.serial++
		id := fmt.Sprintf("b%d", r.serial)
		wg.Go(func() { samples[i], errs[i] = s.boot(ctx, id) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	for _, sample := range samples {
		sample.Concurrency = n
		r.report.Samples = append(r.report.Samples, *sample)
	}
	return nil
}

func (r *run) runc(ctx context.Context, name string, n int) error {
	s := &subject{lab: r.lab, tier: name, runtime: lab.RuntimeRunc, image: r.image}
	for i := range r.rounds(n) {
		r.Progress("%s, %d at once, %d of %d", name, n, i+1, r.rounds(n))
		if err := r.start(ctx, s, n); err != nil {
			return err
		}
	}
	return nil
}

// machines is a subject whose machines come from path.
func (r *run) machines(tier, path string, c lab.ShimConfig) (*subject, error) {
	c.MemoryMiB = memoryMiB
	// Fifty emulated machines on two processors wait for each other.
	c.AgentTimeout = opTimeout
	file := filepath.Join(r.lab.Dir, "bench-"+tier+".toml")
	return &subject{lab: r.lab, tier: tier, runtime: lab.RuntimeBhyve, image: r.image, config: file, path: path},
		r.lab.WriteShimConfig(file, c)
}

func (r *run) boots(ctx context.Context, name, guestDir string, n int) error {
	s, err := r.machines(name, pathBoot, lab.ShimConfig{GuestDir: guestDir})
	if err != nil {
		return err
	}
	for i := range r.rounds(n) {
		r.Progress("%s, %d at once, %d of %d", name, n, i+1, r.rounds(n))
		if err := r.start(ctx, s, n); err != nil {
			return err
		}
	}
	return nil
}

// distinct is the last proof: no two samples ran in the same machine, or in one
// that took itself for another.
func (r *run) distinct() error {
	seen := map[string]string{}
	for _, s := range r.report.Samples {
		if s.Machine == nil || s.Op != OpBoot {
			continue
		}
		for _, identity := range []string{"machine " + s.Machine.ID, "boot id " + s.Proof.BootID} {
			if other, ok := seen[identity]; ok {
				return fmt.Errorf("%s was seen twice: %s and %s", identity, other, s.Tier)
			}
			seen[identity] = s.Tier
		}
	}
	return nil
}

// execs runs commands in one container of each runtime, in turn.
func (r *run) execs(ctx context.Context) (err error) {
	if r.Execs == 0 {
		return nil
	}
	full, err := r.machines(TierBootFull, pathBoot, lab.ShimConfig{})
	if err != nil {
		return err
	}
	var each []func(i int) error
	for _, s := range []*subject{{lab: r.lab, tier: TierRunc, runtime: lab.RuntimeRunc, image: r.image}, full} {
		c, cerr := s.newContainer(ctx, "exec-"+s.tier, image.ProbePath, "signals")
		if cerr != nil {
			return cerr
		}
		defer remove(ctx, c, &err)
		task, terr := c.NewTask(ctx, cio.NullIO)
		if terr != nil {
			return terr
		}
		defer end(ctx, task, &err)
		if err := task.Start(ctx); err != nil {
			return err
		}
		each = append(each, func(i int) error {
			sample, err := s.exec(ctx, c, task, fmt.Sprintf("exec-%d", i))
			if err != nil {
				return fmt.Errorf("%s: %w", s.tier, err)
			}
			r.report.Samples = append(r.report.Samples, *sample)
			return nil
		})
	}
	r.Progress("%d execs in each of two containers", r.Execs)
	for i := range r.Execs {
		for _, f := range each {
			if err := f(i); err != nil {
				return err
			}
		}
	}
	return nil
}
