//go:build linux

package bench

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/lab"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/proc"
)

// withPool runs f with a daemon whose template fits, and has further flags. It
// keeps a checkpoint if cold is set.
func (r *run) withPool(ctx context.Context, cold bool, f func(*lab.Pool) error, flags ...string) (err error) {
	p, err := r.lab.NewPool(ctx, "--concurrency", "2", "--reserve-mib", "512")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Close(ctx)) }()
	flags = append(flags, "--low", "0", "--high", "100", "--memory-mib", strconv.Itoa(memoryMiB))
	if !cold {
		flags = append(flags, "--no-checkpoint")
	}
	if err := p.AddTemplate(ctx, flags...); err != nil {
		return err
	}
	if cold {
		// Makes the checkpoint as well; what is measured comes after it.
		if err := p.Warm(ctx, 1); err != nil {
			return err
		}
		if _, err := p.Run(ctx, "evict"); err != nil {
			return err
		}
	}
	return f(p)
}

// durable has each machine restored for its container.
func (r *run) durable(ctx context.Context, name string, n int) error {
	return r.withPool(ctx, true, func(p *lab.Pool) error {
		s, err := r.machines(name, pathCold, lab.ShimConfig{PoolMode: "require", PoolSocket: p.Socket()})
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
	})
}

// prewarm has the machines of a round wait before it: booted, or restored for
// restoredTiers.
func (r *run) prewarm(ctx context.Context, name string, n int) error {
	var flags []string
	if name == TierDurableRehearsed {
		flags = []string{"--rehearse-clones"}
	}
	return r.withPool(ctx, slices.Contains(restoredTiers, name), func(p *lab.Pool) error {
		s, err := r.machines(name, pathHot, lab.ShimConfig{PoolMode: "require", PoolSocket: p.Socket()})
		if err != nil {
			return err
		}
		// One after the other from a tier that is full at first; n at once again
		// and again.
		warm, starts := n, r.rounds(n)
		if n == 1 {
			warm = r.rounds(n)
		}
		for i := 0; i < starts; {
			r.Progress("%s, %d at once, %d of %d: making %d machines", name, n, i+1, starts, warm)
			if err := r.refill(ctx, p, name, warm, i == 0); err != nil {
				return err
			}
			for k := warm; k >= n; k -= n {
				if err := r.start(ctx, s, n); err != nil {
					return err
				}
				i++
			}
		}
		return nil
	}, flags...)
}

// refill makes n machines wait, and the first time measures what they take and
// how long it lasts to have them again after a crash.
func (r *run) refill(ctx context.Context, p *lab.Pool, name string, n int, first bool) error {
	began := time.Now()
	if err := r.warm(ctx, p, n); err != nil {
		return err
	}
	wall := time.Since(began)
	foot, cpu, err := r.footprint(ctx, p, name)
	if err != nil || !first {
		return err
	}
	r.report.Footprints = append(r.report.Footprints, foot)
	r.report.Refills = append(r.report.Refills, Refill{Tier: name, Machines: n, WallMS: milliseconds(wall), CPUMS: cpu})
	if !slices.Contains(restoredTiers, name) {
		return nil
	}
	// As after a power cut: no process is left, and what is on disk is.
	machines, err := p.Machines()
	if err != nil {
		return err
	}
	p.Kill()
	for _, id := range machines {
		if err := id.Kill(ctx); err != nil {
			return err
		}
	}
	r.Progress("%s: the daemon and its %d machines are killed", name, len(machines))
	began = time.Now()
	if err := p.Start(ctx); err != nil {
		return err
	}
	if err := r.warm(ctx, p, n); err != nil {
		return err
	}
	wall = time.Since(began)
	if _, cpu, err = r.footprint(ctx, p, name); err != nil {
		return err
	}
	r.report.Refills = append(r.report.Refills, Refill{Tier: name, Machines: n, WallMS: milliseconds(wall), CPUMS: cpu, Rebuild: true})
	return nil
}

// warm has n machines wait, and says how far that is.
func (r *run) warm(ctx context.Context, p *lab.Pool, n int) error {
	const step = 10
	return p.WarmTelling(ctx, n, func(done, total int) {
		if done > 0 && done%step == 0 {
			r.Progress("  %d of %d wait", done, total)
		}
	})
}

// waiting measures many machines that wait, and the daemon beside them.
func (r *run) waiting(ctx context.Context, n int) error {
	return r.withPool(ctx, true, func(p *lab.Pool) error {
		r.Progress("%d machines that wait", n)
		if err := r.warm(ctx, p, n); err != nil {
			return err
		}
		foot, _, err := r.footprint(ctx, p, TierDurablePrewarm)
		r.report.Footprints = append(r.report.Footprints, foot)
		return err
	})
}

// footprint measures the machines that wait, and what processor time they have
// taken on average.
func (r *run) footprint(ctx context.Context, p *lab.Pool, name string) (f Footprint, cpuMS float64, err error) {
	machines, err := p.Machines()
	if err != nil || len(machines) == 0 {
		return f, 0, errors.Join(err, errors.New("no machines wait"))
	}
	f = Footprint{Tier: name, Machines: len(machines)}
	var cpu uint64
	for _, id := range machines {
		u, err := id.Usage()
		if err != nil {
			return f, 0, err
		}
		guest, err := id.PrivateDirty(guestMemory)
		if err != nil {
			return f, 0, err
		}
		f.RSS += u.RSS
		f.PSS += u.PSS
		f.GuestPrivate += guest
		f.MonitorPrivate += u.PrivateDirty - min(guest, u.PrivateDirty)
		cpu += u.CPUNanoseconds
	}
	n := uint64(len(machines))
	for _, v := range []*uint64{&f.RSS, &f.PSS, &f.GuestPrivate, &f.MonitorPrivate} {
		*v /= n
	}
	daemon, err := proc.Identify(p.Pid())
	if err != nil {
		return f, 0, err
	}
	u, err := daemon.Usage()
	if err != nil {
		return f, 0, err
	}
	f.DaemonRSS = u.RSS
	began := time.Now()
	if _, err := p.Client.Status(ctx, nil); err != nil {
		return f, 0, err
	}
	f.StatusMS = milliseconds(time.Since(began))
	return f, float64(cpu) / float64(n) / 1e6, nil
}

// guestMemory is a mapping of exactly the guest's memory, which the monitor's
// own never is, but for translated code, which can be executed.
func guestMemory(m proc.Mapping) bool {
	return m.Size == memoryMiB<<20 && strings.HasPrefix(m.Perms, "rw-")
}
