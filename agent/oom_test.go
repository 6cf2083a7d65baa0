//go:build linux

package agent

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	eventstypes "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/core/events"
)

// told is a publisher that remembers what was published, in order.
type told []string

func (p *told) Close() error { return nil }

func (p *told) Publish(_ context.Context, _ string, e events.Event) error {
	switch e := e.(type) {
	case *eventstypes.TaskOOM:
		*p = append(*p, "oom "+e.ContainerID)
	case *eventstypes.TaskExit:
		*p = append(*p, "exit "+e.ID)
	default:
		*p = append(*p, fmt.Sprintf("%T", e))
	}
	return nil
}

func TestOOMIsToldOfOnceAndBeforeTheExit(t *testing.T) {
	root := t.TempDir()
	kills := func(container string, n int) {
		t.Helper()
		dir := filepath.Join(root, container)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		text := fmt.Sprintf("low 0\nhigh 0\nmax 9\noom 8\noom_kill %d\noom_group_kill 0\n", n)
		if err := os.WriteFile(filepath.Join(dir, "memory.events"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var got told
	counts := newOOMCounts(root)
	for _, c := range []string{"c1", "c2"} {
		counts.groups[c] = &oomGroup{dir: filepath.Join(root, c)}
		kills(c, 0)
	}
	w := exitWatcher{&got, func(processKey) {}, counts}
	publish := func(e events.Event) {
		t.Helper()
		if err := w.Publish(t.Context(), "", e); err != nil {
			t.Fatal(err)
		}
	}
	exit := func(container, id string) { publish(&eventstypes.TaskExit{ContainerID: container, ID: id}) }
	notice := func(container string) { publish(&eventstypes.TaskOOM{ContainerID: container}) }

	exit("c1", "plain")
	kills("c1", 1)
	exit("c1", "killed") // before the notice
	notice("c1")         // which has nothing new then
	kills("c1", 3)
	notice("c1") // of two at once
	exit("c1", "another")
	exit("c2", "neighbour")
	publish(&eventstypes.TaskStart{})

	// Where nobody counts, or the group has gone, the notices are all there is.
	notice("unknown")
	exit("unknown", "unknown")
	if err := os.RemoveAll(filepath.Join(root, "c1")); err != nil {
		t.Fatal(err)
	}
	notice("c1")
	exit("c1", "c1")
	counts.forget("c2")
	kills("c2", 5)
	exit("c2", "c2")

	want := told{
		"exit plain", "oom c1", "exit killed", "oom c1", "exit another", "exit neighbour", "*events.TaskStart",
		"oom unknown", "exit unknown", "oom c1", "exit c1", "exit c2",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestControlGroup(t *testing.T) {
	file := filepath.Join(t.TempDir(), "cgroup")
	for text, want := range map[string]string{
		"0::/ns/c1\n":                     "/ns/c1",
		"4:memory:/other\n0::/ns/c 1:x\n": "/ns/c 1:x",
	} {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if got, err := controlGroup(file); got != want || err != nil {
			t.Errorf("%q: got %q, %v", text, got, err)
		}
	}
	if err := os.WriteFile(file, []byte("4:memory:/other\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got, err := controlGroup(file); err == nil {
		t.Errorf("without version 2: %q", got)
	}
	if err := newOOMCounts("").watch("c1", 0); err == nil {
		t.Error("no error for a process that is not there")
	}
}
