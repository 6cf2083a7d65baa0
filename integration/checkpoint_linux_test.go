package integration

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/lab"
)

// TestCheckpoint is sandboxes that are saved with what runs in them.
func TestCheckpoint(t *testing.T) {
	for _, c := range []struct {
		name string
		run  func(*rig)
	}{
		{"copies", testCheckpointCopies},
		{"the same again", testCheckpointSame},
		{"twice", testCheckpointTwice},
		{"terminal", testCheckpointTerminal},
		{"volume", testCheckpointVolume},
		{"network", testCheckpointNetwork},
		{"namespace", testCheckpointNamespace},
		{"namespace to fill", testCheckpointFilled},
		{"refused", testCheckpointRefused},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(newRig(t, lab.RuntimeBhyve)) })
	}
}

// savable makes a container's machine one that can be saved.
const savable = "io.containerd.bhyve.checkpoint"

// entry is a line of a ledger.
type entry struct {
	run, drawn string
	n          int
}

// parseLedger reads what `probe ledger` has written. It must count up without a
// gap, and all of it be one process's.
func (r *rig) parseLedger(text string) []entry {
	r.Helper()
	var all []entry
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if !strings.HasSuffix(line, "\n") || fields[0] == "in" {
			continue
		}
		n, err := strconv.Atoi(fields[1])
		if err != nil {
			r.Fatalf("line %q of a ledger", line)
		}
		e := entry{run: fields[0], n: n, drawn: fields[2]}
		if len(all) > 0 {
			if before := all[len(all)-1]; before.n+1 != n || before.run != e.run {
				r.Fatalf("%+v comes after %+v in\n%s", e, before, text)
			}
		}
		all = append(all, e)
	}
	return all
}

// ledgerOf reads a container's ledger once it has more than n lines.
func (r *rig) ledgerOf(id string, n int) []entry {
	r.Helper()
	var all []entry
	r.eventually(commandTimeout, func() error {
		all = r.parseLedger(r.exec(id, nil, nil, nil, "/bin/busybox", "cat", "/ledger").Stdout)
		if len(all) <= n {
			return fmt.Errorf("%d lines, want more than %d", len(all), n)
		}
		return nil
	})
	return all
}

// testCheckpointCopies is a container that is saved by ctr, runs on, and of which
// two more are made: all three go on from the same moment, each by itself.
func testCheckpointCopies(r *rig) {
	id := r.start([]string{"--annotation", savable + "=true"}, "/bin/probe", "ledger", "/ledger")
	before := r.ledgerOf(id, 3)
	ref := r.checkpoint(id)
	after := r.ledgerOf(id, len(before))

	var copies [2][]entry
	for i := range copies {
		copied := r.newID()
		r.Cleanup(func() { r.forgetRestored(copied) })
		r.must("container", "restore", "--rw", "--live", copied, ref)
		copies[i] = r.ledgerOf(copied, len(before))
	}
	for i, c := range copies {
		if c[0] != before[0] || c[0].run != after[0].run {
			r.Errorf("copy %d is of another process: %+v", i, c[0])
		}
	}
	common := 0
	for common < min(len(after), len(copies[0]), len(copies[1])) && copies[0][common] == after[common] && copies[1][common] == after[common] {
		common++
	}
	if common < len(before) {
		r.Errorf("only %d lines of %d are the same in all", common, len(before))
	}
	for i, c := range copies {
		for _, other := range append(after[common:], copies[1-i][common:]...) {
			for _, e := range c[common:] {
				if e.drawn == other.drawn {
					r.Errorf("%s was drawn in two of them, in line %d of copy %d", e.drawn, e.n, i)
				}
			}
		}
	}
	r.Logf("%d lines in common, then %d, %d and %d", common, len(after)-common, len(copies[0])-common, len(copies[1])-common)
}

// checkpoint has ctr save a container with its task, under a name that is gone when
// the test ends.
func (r *rig) checkpoint(id string) (ref string) {
	r.Helper()
	ref = "checkpoint-of-" + id
	r.Cleanup(func() {
		if err := r.Client.ImageService().Delete(context.WithoutCancel(r.ctx), ref); err != nil && !errdefs.IsNotFound(err) {
			r.Error(err)
		}
	})
	r.must("container", "checkpoint", "--rw", "--image", "--task", id, ref)
	return ref
}

// forgetRestored removes what ctr has restored, and what ctr and containerd leave
// of that under every runtime: the task's FIFOs and the unpacked checkpoint.
func (r *rig) forgetRestored(id string) {
	r.Helper()
	r.removeContainer(id)
	fifos, err := filepath.Glob("/run/containerd/fifo/*/" + id + "-stdout")
	if err != nil {
		r.Error(err)
	}
	unpacked, err := filepath.Glob(filepath.Join(r.TempDir(), "ctrd-checkpoint*"))
	if err != nil {
		r.Error(err)
	}
	for _, f := range fifos {
		unpacked = append(unpacked, filepath.Dir(f))
	}
	for _, dir := range unpacked {
		if err := os.RemoveAll(dir); err != nil {
			r.Error(err)
		}
	}
}

// ledgerContainer is a container that writes a ledger, and whose machine can be
// saved.
func (r *rig) ledgerContainer(spec ...oci.SpecOpts) containerd.Container {
	r.Helper()
	return r.newContainer(nil, append([]oci.SpecOpts{
		oci.WithProcessArgs("/bin/probe", "ledger", "/ledger"),
		oci.WithAnnotations(map[string]string{savable: "true"}),
	}, spec...)...)
}

// task starts the container's task, or has it go on from what was saved in a
// directory.
func (r *rig) task(c containerd.Container, opts ...containerd.NewTaskOpts) (containerd.Task, *output) {
	r.Helper()
	var streams []cio.Opt
	if spec, err := c.Spec(r.ctx); err != nil {
		r.Fatal(err)
	} else if spec.Process.Terminal {
		streams = append(streams, cio.WithTerminal)
	}
	out, creator := r.streams(streams...)
	task, err := c.NewTask(r.ctx, creator, opts...)
	if err != nil {
		r.Fatal(err)
	}
	if err := task.Start(r.ctx); err != nil {
		r.Fatal(err)
	}
	return task, out
}

// awaitLines waits for lines of a ledger on a task's standard output.
func (r *rig) awaitLines(out *output, n int) []entry {
	r.Helper()
	var all []entry
	r.eventually(commandTimeout, func() error {
		if all = r.parseLedger(out.String()); len(all) < n {
			return fmt.Errorf("%d lines, want %d", len(all), n)
		}
		return nil
	})
	return all
}

// testCheckpointSame is a container that is saved, ends, and goes on under its
// own id with its own files: nothing that it has written is lost or doubled.
func testCheckpointSame(r *rig) {
	c := r.ledgerContainer()
	task, out := r.task(c)
	r.awaitLines(out, 3)
	r.say(out, "first")
	dir := r.saveAndEnd(task)
	first := r.parseLedger(out.String())

	task, again := r.task(c, containerd.WithRestoreImagePath(dir))
	second := r.awaitLines(again, 3)
	if last := first[len(first)-1]; second[0].n != last.n+1 || second[0].run != last.run {
		r.Errorf("%+v comes after %+v", second[0], last)
	}
	r.say(again, "second")
	if in := r.ledgerOf(c.ID(), len(first)); in[0] != first[0] {
		r.Errorf("the file begins with %+v, the output with %+v", in[0], first[0])
	}
	if err := task.Kill(r.ctx, 9); err != nil {
		r.Error(err)
	}
}

// say sends a line to a ledger and waits until that has repeated it.
func (r *rig) say(out *output, line string) {
	r.Helper()
	fmt.Fprintln(out.in, line)
	r.eventually(commandTimeout, func() error {
		if !strings.Contains(strings.ReplaceAll(out.String(), "\r", ""), "in "+line+"\n") {
			return fmt.Errorf("the input is not there: %q", out.String())
		}
		return nil
	})
}

// saveAndEnd saves a task, of which nothing is left but the directory.
func (r *rig) saveAndEnd(task containerd.Task) (dir string) {
	r.Helper()
	exit, err := task.Wait(r.ctx)
	if err != nil {
		r.Fatal(err)
	}
	dir = filepath.Join(r.hostDir(), "saved")
	if _, err := task.Checkpoint(r.ctx, containerd.WithCheckpointImagePath(dir), withExit); err != nil {
		r.Fatal(err)
	}
	select {
	case status := <-exit:
		if status.ExitCode() != 137 {
			r.Errorf("it exited with %d", status.ExitCode())
		}
	case <-time.After(commandTimeout):
		r.Fatal("it did not exit")
	}
	if _, err := task.Delete(r.ctx); err != nil {
		r.Fatal(err)
	}
	return dir
}

func withExit(i *containerd.CheckpointTaskInfo) error {
	i.Options.(*runcoptions.CheckpointOptions).Exit = true
	return nil
}

// testCheckpointRefused is what cannot be saved or restored, and what comes of
// it: an error with the reason, and a container that runs on.
func testCheckpointRefused(r *rig) {
	save := func(task containerd.Task) (string, error) {
		dir := filepath.Join(r.hostDir(), "saved")
		_, err := task.Checkpoint(r.ctx, containerd.WithCheckpointImagePath(dir))
		return dir, err
	}
	c := r.ledgerContainer(oci.WithProcessArgs("/bin/probe", "ledger", "/ledger", "removed"))
	task, out := r.task(c)
	n := len(r.awaitLines(out, 2))
	dir, err := save(task)
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "/ledger is open and has been removed") {
		r.Errorf("saved with an open file that has been removed: %v", err)
	}
	if left, err := os.ReadDir(dir); len(left) > 0 || err != nil {
		r.Errorf("of what was not saved is left: %v, %v", left, err)
	}
	r.awaitLines(out, n+2)

	other, err := r.newTask(nil, oci.WithAnnotations(map[string]string{savable: "false"}))
	if err != nil {
		r.Fatal(err)
	}
	if err := other.Start(r.ctx); err != nil {
		r.Fatal(err)
	}
	if _, err := save(other); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "not made to be saved") {
		r.Errorf("saved what was not to be saved: %v", err)
	}

	whole := r.ledgerContainer()
	task, out = r.task(whole)
	r.awaitLines(out, 2)
	small := r.hostDir()
	if err := unix.Mount("tmpfs", small, "tmpfs", 0, "size=4m"); err != nil {
		r.Fatal(err)
	}
	_, err = task.Checkpoint(r.ctx, containerd.WithCheckpointImagePath(small))
	left, rerr := os.ReadDir(small)
	if uerr := unix.Unmount(small, 0); uerr != nil {
		r.Error(uerr)
	}
	if err == nil || len(left) > 0 || rerr != nil {
		r.Errorf("saved to a full disk: %v; there is left %v, %v", err, left, rerr)
	}
	r.awaitLines(out, len(r.parseLedger(out.String()))+2)
	if dir, err = save(task); err != nil {
		r.Fatal(err)
	}
	r.awaitLines(out, len(r.parseLedger(out.String()))+2)
	if err := task.Kill(r.ctx, 9); err != nil {
		r.Fatal(err)
	}
	r.removeTask(task)
	restore := func(why string) {
		r.Helper()
		task, err := whole.NewTask(r.ctx, cio.NullIO, containerd.WithRestoreImagePath(dir))
		if err == nil {
			r.Errorf("restored although %s", why)
			r.removeTask(task)
			return
		}
		if !errdefs.IsFailedPrecondition(err) {
			r.Errorf("%s: %v", why, err)
		}
	}
	restore("/ledger has changed since")
	state := filepath.Join(dir, "machine", "state")
	info, err := os.Stat(state)
	if err != nil {
		r.Fatal(err)
	}
	if err := os.Truncate(state, info.Size()-1); err != nil {
		r.Fatal(err)
	}
	restore("the memory is cut short")
	description := filepath.Join(dir, "sandbox.json")
	text, err := os.ReadFile(description)
	if err != nil {
		r.Fatal(err)
	}
	if err := os.WriteFile(description, bytes.Replace(text, []byte(`"events":`), []byte(`"events":1`), 1), 0o600); err != nil {
		r.Fatal(err)
	}
	restore("the description was altered")
	if err := os.Remove(description); err != nil {
		r.Fatal(err)
	}
	restore("there is none")
}

// removeTask waits for a task's end and removes it.
func (r *rig) removeTask(task containerd.Task) {
	r.Helper()
	if _, err := task.Delete(r.ctx, containerd.WithProcessKill); err != nil {
		r.Error(err)
	}
}
