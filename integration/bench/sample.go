//go:build linux

package bench

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/lab"
)

// opTimeout bounds one operation.
const opTimeout = 10 * time.Minute

// Where machines come from, in the shim's words.
const (
	pathBoot = "boot"
	pathHot  = "hot"
	pathCold = "cold"
)

// subject is one runtime under measurement, with machines from one tier.
type subject struct {
	lab     *lab.Lab
	tier    string
	runtime string
	image   containerd.Image
	// config is the shim's configuration file, and path where it has its machines
	// from. runc has neither.
	config, path string
}

// boot starts a container that prints its proof and ends, and removes it.
func (s *subject) boot(ctx context.Context, id string) (_ *Sample, err error) {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	c, err := s.newContainer(ctx, id, proofCommand...)
	if err != nil {
		return nil, err
	}
	defer remove(ctx, c, &err)
	logged, err := s.lab.LogSize()
	if err != nil {
		return nil, err
	}

	out := newStopwatch()
	task, err := c.NewTask(ctx, cio.NewCreator(cio.WithStreams(nil, out, io.Discard)))
	if err != nil {
		return nil, fmt.Errorf("create task %s: %w", id, err)
	}
	created := out.elapsed()
	// By this object: it knows the pipes of its output, and removes them.
	defer end(ctx, task, &err)
	sample, err := s.measure(ctx, OpBoot, task, out)
	if err != nil {
		return nil, err
	}
	sample.Clocks[clockCreated] = created
	if s.path == "" {
		return sample, nil
	}
	return sample, s.addShim(ctx, sample, id, logged)
}

// exec starts a further process that prints its proof, in a running task.
func (s *subject) exec(ctx context.Context, c containerd.Container, task containerd.Task, id string) (*Sample, error) {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	spec, err := c.Spec(ctx)
	if err != nil {
		return nil, err
	}
	process := *spec.Process
	process.Args = proofCommand
	out := newStopwatch()
	p, err := task.Exec(ctx, id, &process, cio.NewCreator(cio.WithStreams(nil, out, io.Discard)))
	if err != nil {
		return nil, fmt.Errorf("exec %s: %w", id, err)
	}
	sample, err := s.measure(ctx, OpExec, p, out)
	if err != nil {
		return nil, err
	}
	if _, err := p.Delete(ctx); err != nil {
		return nil, fmt.Errorf("delete exec %s: %w", id, err)
	}
	return sample, nil
}

// measure starts a process that has been created since out was made, and waits
// for its end.
func (s *subject) measure(ctx context.Context, op string, p containerd.Process, out *stopwatch) (*Sample, error) {
	ended, err := p.Wait(ctx)
	if err != nil {
		return nil, err
	}
	if err := p.Start(ctx); err != nil {
		return nil, fmt.Errorf("start %s: %w", p.ID(), err)
	}
	sample := &Sample{Tier: s.tier, Op: op, Concurrency: 1, Clocks: map[string]float64{clockStarted: out.elapsed()}}
	status := <-ended
	sample.Clocks[clockEnded] = out.elapsed()
	if status.Error() != nil || status.ExitCode() != 0 {
		return nil, fmt.Errorf("%s exited with code %d, %w", p.ID(), status.ExitCode(), status.Error())
	}
	// The exit does not wait for the copying of the output.
	p.IO().Wait()
	data, first := out.result()
	sample.Clocks[clockFirstByte] = first
	if sample.Proof, err = parseProof(data); err != nil {
		return nil, fmt.Errorf("proof of %s: %w", p.ID(), err)
	}
	return sample, nil
}

func (s *subject) newContainer(ctx context.Context, id string, command ...string) (containerd.Container, error) {
	var options any
	if s.config != "" {
		options = &runtimeoptions.Options{ConfigPath: s.config}
	}
	return s.lab.Client.NewContainer(ctx, id,
		containerd.WithImage(s.image),
		containerd.WithRuntime(s.runtime, options),
		containerd.WithNewSnapshot(id, s.image),
		containerd.WithNewSpec(oci.WithImageConfig(s.image), oci.WithProcessArgs(command...)))
}

// end ends and removes a task. Its own error becomes *err only where there was
// none, as does that of remove.
func end(ctx context.Context, task containerd.Task, err *error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), opTimeout)
	defer cancel()
	if _, derr := task.Delete(ctx, containerd.WithProcessKill); *err == nil && derr != nil {
		*err = fmt.Errorf("end task %s: %w", task.ID(), derr)
	}
}

// remove removes a container that has no task any more.
func remove(ctx context.Context, c containerd.Container, err *error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), opTimeout)
	defer cancel()
	if derr := c.Delete(ctx, containerd.WithSnapshotCleanup); *err == nil && derr != nil {
		*err = fmt.Errorf("remove %s: %w", c.ID(), derr)
	}
}

// stopwatch collects output and remembers when the first of it came.
type stopwatch struct {
	began time.Time

	mu    sync.Mutex
	first time.Duration
	data  bytes.Buffer
}

func newStopwatch() *stopwatch { return &stopwatch{began: time.Now()} }

func (w *stopwatch) Write(p []byte) (int, error) {
	now := time.Since(w.began)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.data.Len() == 0 {
		w.first = now
	}
	return w.data.Write(p)
}

func (w *stopwatch) result() (data []byte, first float64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.data.Bytes(), milliseconds(w.first)
}

func (w *stopwatch) elapsed() float64 { return milliseconds(time.Since(w.began)) }

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
