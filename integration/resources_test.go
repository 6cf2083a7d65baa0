//go:build linux || freebsd

package integration

import (
	"context"
	"encoding/json"
	"strings"
	"time"

	"github.com/containerd/cgroups/v3/cgroup2/stats"
	"github.com/containerd/containerd/api/types/runc/options"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// testPause freezes a container, looks at it, and kills it frozen.
func testPause(r *rig) {
	events := r.subscribe()
	id := r.start(nil)
	out := newLineWaiter()
	ended := r.background(out, "task", "exec", "--exec-id", "before", id, "/bin/probe", "signals")
	out.waitFor(r, "ready")

	r.must("task", "pause", id)
	if status, _ := r.taskStatus(id); status != "PAUSED" {
		r.Errorf("a paused task is %q", status)
	}
	for what, args := range map[string][]string{
		"exec":         {"task", "exec", "--exec-id", "refused", id, "/bin/true"},
		"second pause": {"task", "pause", id},
		"delete":       {"task", "rm", id},
	} {
		if result := r.ctr(args...); result.Code == 0 {
			r.Errorf("%s of a paused task: %s", what, result)
		}
	}
	// It waits for the thaw.
	r.must("task", "kill", "--signal", "SIGUSR1", "--exec-id", "before", id)
	r.must("task", "resume", id)
	out.waitFor(r, "user defined signal 1")
	if status, _ := r.taskStatus(id); status != "RUNNING" {
		r.Errorf("a resumed task is %q", status)
	}
	if result := r.ctr("task", "resume", id); result.Code == 0 {
		r.Errorf("second resume: %s", result)
	}
	r.expect(r.exec(id, nil, nil, nil, "/bin/echo", "thawed"), 0, "thawed\n")

	r.must("task", "pause", id)
	r.must("task", "kill", "--signal", "SIGKILL", id)
	if result := <-ended; result.Code != 128+9 {
		r.Errorf("want exit code %d of an exec in a container that was killed from\n%s", 128+9, result)
	}
	r.waitStatus(id, "STOPPED")
	r.must("task", "rm", id)
	r.wantEvents(events, id, "/tasks/paused", "/tasks/resumed", "/tasks/paused", "/tasks/exit before 137", "/tasks/exit "+id+" 137")
}

// wantEvents waits for events of a container, in this order, whatever else
// comes in between. One without a process is any of its topic.
func (r *rig) wantEvents(events *subscription, id string, want ...string) {
	r.Helper()
	var seen []string
	for _, w := range want {
		for {
			e, err := events.next(r.ctx, id, commandTimeout)
			if err != nil {
				r.Fatalf("no event %q: %v; seen are %q", w, err, seen)
			}
			seen = append(seen, e.String())
			if e.String() == w || e.topic == w {
				break
			}
		}
	}
}

const mib = 1 << 20

// testLimits looks at what a container may use: its processes, its figures, new
// limits, and what happens at the limit.
func testLimits(r *rig) {
	events := r.subscribe()
	// On SIGUSR1, process 1 becomes one that takes too much.
	id := r.start([]string{"--memory-limit", "67108864"}, "/bin/sh", "-c",
		`trap 'exec /bin/dd if=/dev/zero of=/dev/null bs=128M count=1' USR1; while :; do sleep 1 & wait $!; done`)
	ctx, cancel := context.WithTimeout(r.ctx, 2*commandTimeout)
	defer cancel()
	c, err := r.Client.LoadContainer(ctx, id)
	if err != nil {
		r.Fatal(err)
	}
	task, err := c.Task(ctx, nil)
	if err != nil {
		r.Fatal(err)
	}

	out := newLineWaiter()
	ended := r.background(out, "task", "exec", "--exec-id", "second", id, "/bin/probe", "signals")
	out.waitFor(r, "ready")
	r.wantPid(ctx, task, "second")
	r.must("task", "kill", "--exec-id", "second", id)
	<-ended

	if m := r.metrics(id); m.GetMemory().GetUsage() == 0 || m.GetMemory().GetUsageLimit() != 64*mib ||
		m.GetCPU().GetUsageUsec() == 0 || m.GetPids().GetCurrent() == 0 {
		r.Errorf("metrics are %v", m)
	}
	limit, quota, period, pids := int64(48*mib), int64(20000), uint64(100000), int64(77)
	r.update(ctx, task, &specs.LinuxResources{
		Memory: &specs.LinuxMemory{Limit: &limit},
		CPU:    &specs.LinuxCPU{Quota: &quota, Period: &period},
		Pids:   &specs.LinuxPids{Limit: &pids},
	}, nil)
	if m := r.metrics(id); m.GetMemory().GetUsageLimit() != 48*mib || m.GetPids().GetLimit() != 77 {
		r.Errorf("after the update, metrics are %v", m)
	}
	r.mustOK(r.exec(id, nil, nil, nil, "/bin/sh", "-c", "i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done"))
	if m := r.metrics(id); m.GetCPU().GetNrThrottled() == 0 {
		r.Errorf("a process that takes all it can was never throttled: %v", m.GetCPU())
	}
	quota = -1 // The rest at full speed.
	r.update(ctx, task, &specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: &quota, Period: &period}}, nil)
	if !r.reference() {
		much, cpus := int64(1)<<40, "0"
		r.update(ctx, task, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &much}}, errdefs.IsOutOfRange)
		r.update(ctx, task, &specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: cpus}}, errdefs.IsNotImplemented)
	}

	result := r.ctr("task", "exec", "--exec-id", "glutton", id, "/bin/dd", "if=/dev/zero", "of=/dev/null", "bs=128M", "count=1")
	if result.Code != 128+9 {
		r.Errorf("want exit code %d of an exec that takes too much from\n%s", 128+9, result)
	}
	r.must("task", "kill", "--signal", "SIGUSR1", id)
	r.waitStatus(id, "STOPPED")
	if r.reference() {
		return // Its shim watches control groups of version 1 in its own way.
	}
	r.wantEvents(events, id, "/tasks/oom", "/tasks/exit glutton 137", "/tasks/oom", "/tasks/exit "+id+" 137")
}

// wantPid checks that a process of an exec is listed as that.
func (r *rig) wantPid(ctx context.Context, task containerd.Task, execID string) {
	r.Helper()
	processes, err := task.Pids(ctx)
	if err != nil {
		r.Fatal(err)
	}
	for _, p := range processes {
		if p.Info == nil {
			continue
		}
		var details options.ProcessDetails
		if err := typeurl.UnmarshalTo(p.Info, &details); err != nil {
			r.Error(err)
		}
		if details.ExecID == execID && p.Pid > 1 {
			return
		}
	}
	r.Errorf("exec %s is not among %v", execID, processes)
}

// metrics are those of a control group of version 2, or of as much of version 1
// as is compared.
func (r *rig) metrics(id string) *stats.Metrics {
	r.Helper()
	text := r.must("task", "metrics", "--format", "json", id).Stdout
	m := &stats.Metrics{}
	if !strings.Contains(text, "usage_usec") {
		return r.metricsV1(text)
	}
	if err := json.Unmarshal([]byte(text), m); err != nil {
		r.Fatalf("%v in %s", err, text)
	}
	return m
}

// metricsV1 is for the reference, which measures in the host's version.
func (r *rig) metricsV1(text string) *stats.Metrics {
	r.Helper()
	if !r.reference() {
		r.Fatalf("metrics are of another kind: %s", text)
	}
	var v1 struct {
		Memory struct{ Usage struct{ Usage, Limit uint64 } }
		CPU    struct {
			Usage      struct{ Total uint64 }
			Throttling struct {
				ThrottledPeriods uint64 `json:"throttled_periods"`
			}
		}
		Pids struct{ Current, Limit uint64 }
	}
	if err := json.Unmarshal([]byte(text), &v1); err != nil {
		r.Fatalf("%v in %s", err, text)
	}
	return &stats.Metrics{
		Memory: &stats.MemoryStat{Usage: v1.Memory.Usage.Usage, UsageLimit: v1.Memory.Usage.Limit},
		CPU: &stats.CPUStat{
			UsageUsec:   v1.CPU.Usage.Total / uint64(time.Microsecond),
			NrThrottled: v1.CPU.Throttling.ThrottledPeriods,
		},
		Pids: &stats.PidsStat{Current: v1.Pids.Current, Limit: v1.Pids.Limit},
	}
}

// update changes limits. With kind it has to be refused with such an error.
func (r *rig) update(ctx context.Context, task containerd.Task, resources *specs.LinuxResources, kind func(error) bool) {
	r.Helper()
	err := task.Update(ctx, containerd.WithResources(resources))
	if kind == nil && err != nil {
		r.Errorf("update: %v", err)
	}
	if kind != nil && !kind(err) {
		r.Errorf("update to %+v: got %v", resources, err)
	}
}
