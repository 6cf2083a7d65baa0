//go:build linux || freebsd

package integration

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/lab"
)

// commandTimeout bounds one command. A machine boots within seconds, in
// software and beside others too.
var commandTimeout = lab.Patience(90 * time.Second)

// rig is one test's view of the lab.
type rig struct {
	*testing.T
	*lab.Lab
	// runtime is the containerd runtime under test.
	runtime string
	// snapshotter is another than the lab's own.
	snapshotter string
	ctx         context.Context
}

// newRig makes a rig whose test fails if it leaves anything behind.
func newRig(t *testing.T, runtime string) *rig {
	t.Helper()
	r := &rig{T: t, Lab: theLab, runtime: runtime, ctx: theLab.Context(t.Context())}
	began, err := r.LogSize()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Leaks(context.WithoutCancel(r.ctx)); err != nil {
			if r.reference() {
				t.Logf("the reference: %v", err)
			} else {
				t.Error(err)
			}
		}
		if !t.Failed() {
			return
		}
		if log, err := r.LogSince(began); err == nil {
			t.Logf("containerd's log of this test:\n%s", worthReading(log))
		}
	})
	return r
}

// logLinesShown bounds what a failure shows of containerd's log, so that it does
// not bury the failure itself.
const logLinesShown = 40

// worthReading keeps the end of what a person would read first: warnings and
// worse of containerd's, and all that the shims say of their machines.
func worthReading(log string) string {
	var kept []string
	for line := range strings.Lines(log) {
		level := strings.Contains(line, "level=warn") || strings.Contains(line, "level=error") || strings.Contains(line, "level=fatal")
		if level || strings.Contains(line, "machine=") && !strings.Contains(line, "level=debug") {
			kept = append(kept, line)
		}
	}
	return strings.Join(kept[max(0, len(kept)-logLinesShown):], "")
}

// reference is true for the runtime that only shows what the tests may expect.
// What it leaves behind itself when its shim is killed is not this module's.
func (r *rig) reference() bool { return r.runtime == lab.RuntimeRunc }

var lastID atomic.Int64

// newID is a container's id that no other test uses.
func (r *rig) newID() string { return fmt.Sprintf("c%d", lastID.Add(1)) }

// ctr runs ctr with args, and fails the test if it cannot be run or hangs.
func (r *rig) ctr(args ...string) lab.Result {
	r.Helper()
	return r.ctrIn(nil, nil, args...)
}

// ctrIn is ctr with standard input from in, and standard output to out where
// they are not nil.
func (r *rig) ctrIn(in io.Reader, out io.Writer, args ...string) lab.Result {
	r.Helper()
	ctx, cancel := context.WithTimeoutCause(r.ctx, commandTimeout, fmt.Errorf("took longer than %v", commandTimeout))
	defer cancel()
	cmd := r.Command(ctx, args...)
	cmd.Stdin, cmd.Stdout = in, out
	return r.wait(ctx, cmd)
}

func (r *rig) wait(ctx context.Context, cmd *exec.Cmd) lab.Result {
	r.Helper()
	result, err := r.Complete(cmd)
	if err != nil {
		r.Fatalf("%v (%v)\n%s", err, context.Cause(ctx), result)
	}
	return result
}

// must runs ctr and fails the test unless it exits with code 0.
func (r *rig) must(args ...string) lab.Result {
	r.Helper()
	return r.mustOK(r.ctr(args...))
}

// mustOK fails the test unless result is exit code 0.
func (r *rig) mustOK(result lab.Result) lab.Result {
	r.Helper()
	if result.Code != 0 {
		r.Fatal(result)
	}
	return result
}

// runFlags is the beginning of a `ctr run` under the rig's runtime.
func (r *rig) runFlags(flags ...string) []string {
	args := append([]string{"run", "--runtime", r.runtime}, flags...)
	if r.snapshotter != "" {
		args = append(args, "--snapshotter", r.snapshotter)
	}
	return args
}

// runArgs is `ctr run --rm` of the lab's image: flags are ctr's, command is
// the container's.
func (r *rig) runArgs(flags []string, command ...string) []string {
	args := append(r.runFlags("--rm"), flags...)
	return append(append(args, lab.Image, r.newID()), command...)
}

// run runs a container to its end.
func (r *rig) run(flags []string, command ...string) lab.Result {
	r.Helper()
	return r.ctr(r.runArgs(flags, command...)...)
}

// mustRun is run for a command that has to succeed.
func (r *rig) mustRun(flags []string, command ...string) lab.Result {
	r.Helper()
	return r.mustOK(r.run(flags, command...))
}

// start starts a container that runs until the test ends, and returns its id.
func (r *rig) start(flags []string, command ...string) string {
	r.Helper()
	id := r.newID()
	r.startAs(id, flags, command...)
	return id
}

// startAs is start of a container that has an id already.
func (r *rig) startAs(id string, flags []string, command ...string) {
	r.Helper()
	if len(command) == 0 {
		// busybox's sleep would end by itself, and as process 1 ignores SIGTERM.
		command = []string{"/bin/probe", "signals"}
	}
	args := append(r.runFlags("--detach", "--null-io"), flags...)
	r.Cleanup(func() { r.removeContainer(id) })
	r.must(append(append(args, lab.Image, id), command...)...)
}

// startWith is start for what ctr has no flags for: opts may replace what a
// container is made with, spec changes the default spec.
func (r *rig) startWith(opts []containerd.NewContainerOpts, spec ...oci.SpecOpts) string {
	r.Helper()
	id, err := r.tryStartWith(opts, spec...)
	if err != nil {
		r.Fatal(err)
	}
	return id
}

// tryStartWith is startWith for what may be refused.
func (r *rig) tryStartWith(opts []containerd.NewContainerOpts, spec ...oci.SpecOpts) (string, error) {
	r.Helper()
	task, err := r.newTask(opts, spec...)
	if err != nil {
		return "", err
	}
	return task.ID(), task.Start(r.ctx)
}

// create makes a container's task, and does not start it.
func (r *rig) create() string {
	r.Helper()
	task, err := r.newTask(nil)
	if err != nil {
		r.Fatal(err)
	}
	return task.ID()
}

func (r *rig) newTask(opts []containerd.NewContainerOpts, spec ...oci.SpecOpts) (containerd.Task, error) {
	r.Helper()
	c := r.newContainer(opts, append([]oci.SpecOpts{oci.WithProcessArgs("/bin/probe", "signals")}, spec...)...)
	return c.NewTask(r.ctx, cio.NullIO)
}

// newContainer is a container of the lab's image, which is removed when the test
// ends.
func (r *rig) newContainer(opts []containerd.NewContainerOpts, spec ...oci.SpecOpts) containerd.Container {
	r.Helper()
	img, err := r.Client.GetImage(r.ctx, lab.Image)
	if err != nil {
		r.Fatal(err)
	}
	id := r.newID()
	r.Cleanup(func() { r.removeContainer(id) })
	c, err := r.Client.NewContainer(r.ctx, id, append([]containerd.NewContainerOpts{
		containerd.WithImage(img),
		containerd.WithRuntime(r.runtime, nil),
		containerd.WithNewSnapshot(id, img),
		containerd.WithNewSpec(append([]oci.SpecOpts{oci.WithImageConfig(img)}, spec...)...),
	}, opts...)...)
	if err != nil {
		r.Fatal(err)
	}
	return c
}

// removeContainer removes a container and its task, as far as they are there.
func (r *rig) removeContainer(id string) {
	r.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.ctx), commandTimeout)
	defer cancel()
	for _, args := range [][]string{{"task", "rm", "--force", id}, {"container", "rm", id}} {
		result, err := r.Ctr(ctx, args...)
		if err != nil {
			r.Errorf("%v\n%s", err, result)
		} else if result.Code != 0 && !strings.Contains(result.Stderr, "not found") {
			r.Error(result)
		}
	}
}

var lastExec atomic.Int64

// exec runs a further process in a container to its end.
func (r *rig) exec(id string, in io.Reader, out io.Writer, flags []string, command ...string) lab.Result {
	r.Helper()
	args := append([]string{"task", "exec", "--exec-id", fmt.Sprintf("e%d", lastExec.Add(1))}, flags...)
	return r.ctrIn(in, out, append(append(args, id), command...)...)
}

// eventually fails the test if condition does not become nil in time.
func (r *rig) eventually(limit time.Duration, condition func() error) {
	r.Helper()
	ctx, cancel := context.WithTimeoutCause(r.ctx, limit, fmt.Errorf("waited for %v", limit))
	defer cancel()
	if err := lab.Eventually(ctx, condition); err != nil {
		r.Fatal(err)
	}
}

// expect compares what a command had to say.
func (r *rig) expect(result lab.Result, code int, stdout string) {
	r.Helper()
	if result.Code != code || result.Stdout != stdout {
		r.Errorf("want exit code %d and stdout %q from\n%s", code, stdout, result)
	}
}

// hostDir is a directory of the host's for a test to mount.
func (r *rig) hostDir() string {
	r.Helper()
	dir, err := os.MkdirTemp(r.TempDir(), "mount-")
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			r.Error(err)
		}
	})
	return dir
}

// lineWaiter is a writer that lets a test wait for a line of output.
type lineWaiter struct {
	lines chan string
	rest  []byte
}

func newLineWaiter() *lineWaiter { return &lineWaiter{lines: make(chan string, 1024)} }

func (w *lineWaiter) Write(p []byte) (int, error) {
	w.rest = append(w.rest, p...)
	for {
		line, rest, ok := bytes.Cut(w.rest, []byte("\n"))
		if !ok {
			return len(p), nil
		}
		w.lines <- strings.TrimRight(string(line), "\r")
		w.rest = rest
	}
}

// waitFor reads lines up to the one that is wanted.
func (w *lineWaiter) waitFor(r *rig, want string) {
	r.Helper()
	w.waitForPoking(r, want, func() {})
}

// pokeInterval is how often waitForPoking calls its function.
const pokeInterval = 200 * time.Millisecond

// waitForPoking is waitFor that calls poke again and again meanwhile.
func (w *lineWaiter) waitForPoking(r *rig, want string, poke func()) {
	r.Helper()
	limit := time.NewTimer(commandTimeout)
	defer limit.Stop()
	again := time.NewTicker(pokeInterval)
	defer again.Stop()
	var seen []string
	for {
		select {
		case line := <-w.lines:
			if line == want {
				return
			}
			seen = append(seen, line)
		case <-again.C:
			poke()
		case <-limit.C:
			r.Fatalf("no line %q within %v, only %q", want, commandTimeout, seen)
		}
	}
}
