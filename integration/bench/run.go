//go:build linux

package bench

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/containerd/v2/pkg/cio"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/image"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/lab"
)

// Options say how much is measured.
type Options struct {
	// Boots and Execs are how many samples are taken of each runtime.
	Boots, Execs int
	// Progress is told what is going on.
	Progress func(format string, args ...any)
}

// Run measures the runtimes in turn, so that what else the machine does meets
// both.
func Run(ctx context.Context, l *lab.Lab, o Options) (*Report, error) {
	ctx = l.Context(ctx)
	img, err := l.Client.GetImage(ctx, lab.Image)
	if err != nil {
		return nil, err
	}
	subjects := []*subject{
		{lab: l, runtime: lab.RuntimeRunc, image: img},
		{lab: l, runtime: lab.RuntimeBhyve, image: img},
	}
	report := newReport(time.Now())
	for i := range o.Boots {
		for _, s := range subjects {
			o.Progress("boot %d of %d, %s", i+1, o.Boots, s.runtime)
			sample, err := s.boot(ctx, fmt.Sprintf("boot-%d", i))
			if err != nil {
				return nil, fmt.Errorf("%s: %w", s.runtime, err)
			}
			report.Samples = append(report.Samples, *sample)
		}
	}
	samples, err := execAll(ctx, subjects, o)
	report.Samples = append(report.Samples, samples...)
	return report, err
}

// execAll runs commands in one container of each subject, in turn.
func execAll(ctx context.Context, subjects []*subject, o Options) (samples []Sample, err error) {
	var run []func(i int) error
	for _, s := range subjects {
		c, cerr := s.newContainer(ctx, "exec-"+s.runtime, image.ProbePath, "signals")
		if cerr != nil {
			return nil, cerr
		}
		defer remove(ctx, c, &err)
		task, terr := c.NewTask(ctx, cio.NullIO)
		if terr != nil {
			return nil, terr
		}
		defer end(ctx, task, &err)
		if err := task.Start(ctx); err != nil {
			return nil, err
		}
		run = append(run, func(i int) error {
			sample, err := s.exec(ctx, c, task, fmt.Sprintf("exec-%d", i))
			if err != nil {
				return fmt.Errorf("%s: %w", s.runtime, err)
			}
			samples = append(samples, *sample)
			return nil
		})
	}
	o.Progress("%d execs in each of two containers", o.Execs)
	for i := range o.Execs {
		for _, f := range run {
			if err := f(i); err != nil {
				return samples, err
			}
		}
	}
	return samples, nil
}
