//go:build linux || freebsd

package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/lab"
)

// testLogger is the life of a container as `nerdctl run -d` starts it: its output
// goes to a logger, and hooks run on the host. A client leaves one of its execs
// and another takes over.
func testLogger(r *rig) {
	ctx, cancel := context.WithTimeoutCause(r.ctx, 2*commandTimeout, fmt.Errorf("took longer than %v", 2*commandTimeout))
	defer cancel()
	dir := r.hostDir()
	file := func(name string) string {
		r.Helper()
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			r.Error(err)
		}
		return string(data)
	}
	image, err := r.Client.GetImage(ctx, lab.Image)
	if err != nil {
		r.Fatal(err)
	}
	id := r.newID()
	c, err := r.Client.NewContainer(ctx, id,
		containerd.WithRuntime(r.runtime, nil),
		containerd.WithNewSnapshot(id, image),
		containerd.WithNewSpec(oci.WithImageConfig(image),
			oci.WithProcessArgs("/bin/sh", "-c", "echo err >&2; exec /bin/probe signals"),
			withHooks(dir)))
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { r.removeContainer(id) })

	script := "cd " + dir + "; exec 5>&-; cat <&3 > out & cat <&4 > err & wait; touch ended"
	task, err := c.NewTask(ctx, cio.LogURI(&url.URL{Scheme: "binary", Path: "/bin/sh", RawQuery: "-c=" + url.QueryEscape(script)}))
	if err != nil {
		r.Fatal(err)
	}
	exited, err := task.Wait(ctx)
	if err != nil {
		r.Fatal(err)
	}
	if err := task.Start(ctx); err != nil {
		r.Fatal(err)
	}
	r.wantHook(file("createRuntime"), id, int(task.Pid()))

	spec, err := c.Spec(ctx)
	if err != nil {
		r.Fatal(err)
	}
	process := func(args ...string) *specs.Process {
		p := *spec.Process
		p.Args = args
		return &p
	}
	r.execToFile(ctx, task, process("/bin/sh", "-c", "echo out; echo err >&2"), filepath.Join(dir, "made", "log"))
	switch got := file("made/log"); {
	case got == "out\nerr\n" || got == "err\nout\n":
	case got == "out\n" && r.reference():
		// containerd's shim closes the file at the end of stdout, if that comes
		// before it has begun with stderr.
	default:
		r.Errorf("an exec's file has %q", got)
	}
	r.execWithTwoClients(ctx, task, process("/bin/probe", "signals"))

	if err := task.Kill(ctx, syscall.SIGTERM); err != nil {
		r.Fatal(err)
	}
	if status := <-exited; status.ExitCode() != 42 {
		r.Errorf("exited with %d, %v, want 42", status.ExitCode(), status.Error())
	}
	if _, err := os.Stat(filepath.Join(dir, "poststop")); err == nil {
		r.Error("the poststop hook ran before the container was deleted")
	}
	if _, err := task.Delete(ctx); err != nil {
		r.Fatal(err)
	}
	logged := func() error {
		if out, err := file("out"), file("err"); !strings.Contains(out, "terminated\n") || err != "err\n" {
			return fmt.Errorf("the logger got %q and %q", out, err)
		}
		return nil
	}
	if r.reference() { // containerd's shim sends it SIGTERM at once, and does not wait for what it has started
		r.eventually(commandTimeout, logged)
	} else {
		if err := logged(); err != nil {
			r.Error(err)
		}
		file("ended")
	}
	r.wantHook(file("poststop"), id, 0)
}

// withHooks has hooks write what they are told into files of their names.
func withHooks(dir string) oci.SpecOpts {
	hook := func(name string) []specs.Hook {
		return []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "cat > " + filepath.Join(dir, name)}, Env: []string{"PATH=/bin"}}}
	}
	return func(_ context.Context, _ oci.Client, _ *containers.Container, s *oci.Spec) error {
		s.Hooks = &specs.Hooks{CreateRuntime: hook("createRuntime"), Poststop: hook("poststop")}
		return nil
	}
}

func (r *rig) wantHook(told, id string, pid int) {
	r.Helper()
	var s specs.State
	if err := json.Unmarshal([]byte(told), &s); err != nil || s.ID != id || s.Pid != pid {
		r.Errorf("a hook was told %q, want container %s and process %d", told, id, pid)
	}
}

// execToFile runs a process whose output goes to a file.
func (r *rig) execToFile(ctx context.Context, task containerd.Task, spec *specs.Process, path string) {
	r.Helper()
	p, err := task.Exec(ctx, "to-file", spec, cio.LogFile(path))
	if err != nil {
		r.Fatal(err)
	}
	exited, err := p.Wait(ctx)
	if err != nil {
		r.Fatal(err)
	}
	if err := p.Start(ctx); err != nil {
		r.Fatal(err)
	}
	if status := <-exited; status.ExitCode() != 0 {
		r.Errorf("exited with %d, %v", status.ExitCode(), status.Error())
	}
	if _, err := p.Delete(ctx); err != nil {
		r.Error(err)
	}
}

// execWithTwoClients runs the signals probe, and changes clients in the middle.
// What it says meanwhile is there for the second.
func (r *rig) execWithTwoClients(ctx context.Context, task containerd.Task, spec *specs.Process) {
	r.Helper()
	first, second := newLineWaiter(), newLineWaiter()
	p, err := task.Exec(ctx, "attached", spec, cio.NewCreator(cio.WithStreams(nil, first, io.Discard), cio.WithFIFODir(r.hostDir())))
	if err != nil {
		r.Fatal(err)
	}
	if err := p.Start(ctx); err != nil {
		r.Fatal(err)
	}
	first.waitFor(r, "ready")
	p.IO().Cancel()
	if err := p.Kill(ctx, syscall.SIGUSR1); err != nil {
		r.Fatal(err)
	}
	again, err := task.LoadProcess(ctx, "attached", cio.NewAttach(cio.WithStreams(nil, second, io.Discard)))
	if err != nil {
		r.Fatal(err)
	}
	second.waitFor(r, "user defined signal 1")
	exited, err := again.Wait(ctx)
	if err != nil {
		r.Fatal(err)
	}
	if err := again.Kill(ctx, syscall.SIGTERM); err != nil {
		r.Fatal(err)
	}
	second.waitFor(r, "terminated")
	if status := <-exited; status.ExitCode() != 42 {
		r.Errorf("exited with %d, %v, want 42", status.ExitCode(), status.Error())
	}
	if _, err := again.Delete(ctx); err != nil {
		r.Error(err)
	}
}
