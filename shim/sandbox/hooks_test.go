package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/hooks"
)

// hookLog has a container's hooks write down what they are told, in order.
type hookLog struct {
	b    *bed
	path string
}

func newHookLog(b *bed) *hookLog {
	return &hookLog{b, filepath.Join(b.t.TempDir(), "log")}
}

func (l *hookLog) hook(kind, then string) []specs.Hook {
	return []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", `printf '%s ' ` + kind + ` >> ` + l.path + `; cat >> ` + l.path + `; echo >> ` + l.path + "; " + then}}}
}

func (l *hookLog) all(s *specs.Spec) {
	s.Annotations = map[string]string{"a": "b"}
	s.Hooks = &specs.Hooks{
		//lint:ignore SA1019 Still written by others.
		Prestart:      l.hook("prestart", ":"),
		CreateRuntime: l.hook("createRuntime", ":"),
		Poststart:     l.hook("poststart", ":"),
		Poststop:      l.hook("poststop", ":"),
	}
}

// want checks which hooks have run up to now, and that each was told the truth.
func (l *hookLog) want(kinds ...string) {
	l.b.t.Helper()
	data, err := os.ReadFile(l.path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		l.b.t.Fatal(err)
	}
	var got []string
	for line := range strings.Lines(string(data)) {
		kind, state, _ := strings.Cut(strings.TrimSpace(line), " ")
		got = append(got, kind)
		var s specs.State
		if err := json.Unmarshal([]byte(state), &s); err != nil {
			l.b.t.Fatalf("%s hook was told %q: %v", kind, state, err)
		}
		pid, status := fakePid, specs.StateCreating
		switch kind {
		case "poststart":
			status = specs.StateRunning
		case "poststop":
			pid, status = 0, specs.StateStopped
		}
		if s.ID != "c1" || s.Pid != pid || s.Status != status || s.Annotations["a"] != "b" || s.Bundle == "" {
			l.b.t.Errorf("%s hook was told %+v", kind, s)
		}
	}
	if strings.Join(got, " ") != strings.Join(kinds, " ") {
		l.b.t.Errorf("hooks %v have run, want %v", got, kinds)
	}
}

// nothingDue checks that the book has at most the machine, which may live on.
func nothingDue(t *testing.T, bundleDir string) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(bundleDir, receiptsFile))
	must(t, err)
	if strings.Contains(string(data), (*hooks.Debt)(nil).Kind()) {
		t.Errorf("hooks are still due: %s", data)
	}
}

func TestHooksOfAWholeLife(t *testing.T) {
	b := newBed(t)
	l := newHookLog(b)
	b.backend.furnish = func(a *fakeAgent) {
		a.on("task.Create", func(ctx context.Context) error {
			// Before the container's process is created.
			l.want("prestart", "createRuntime")
			return nil
		})
	}
	r := b.request("c1", l.all)
	c := b.create(r)
	must(t, c.Start(b.within(), ""))
	l.want("prestart", "createRuntime", "poststart")
	b.agent().exit("c1", "", 0)
	_, err := c.Delete(b.within(), "")
	must(t, err)
	l.want("prestart", "createRuntime", "poststart", "poststop")
	nothingDue(t, r.Bundle)
}

func TestPoststopIsDueOnlyAfterAHook(t *testing.T) {
	b := newBed(t)
	l := newHookLog(b)
	r := b.request("c1", l.all, func(s *specs.Spec) { s.Process.Args = nil })
	if _, err := b.Create(b.within(), r); err == nil {
		t.Fatal("created")
	}
	l.want()
	noReceipts(t, r.Bundle)
}

func TestACreateHookThatFails(t *testing.T) {
	b := newBed(t)
	l := newHookLog(b)
	r := b.request("c1", l.all, func(s *specs.Spec) { s.Hooks.CreateRuntime = l.hook("createRuntime", "echo no network; exit 1") })
	_, err := b.Create(b.within(), r)
	var failure *hooks.Error
	if !errors.As(err, &failure) || !strings.Contains(err.Error(), "no network") {
		t.Errorf("got %v, want the hook's failure", err)
	}
	l.want("prestart", "createRuntime", "poststop")
	nothingDue(t, r.Bundle)
	if a := b.agent(); a.hasBundle("c1") || a.hasTask("c1") {
		t.Error("the guest has something of the container")
	}
}

func TestAPoststartHookThatFailsIsTheEnd(t *testing.T) {
	b := newBed(t)
	l := newHookLog(b)
	c := b.create(b.request("c1", l.all, func(s *specs.Spec) { s.Hooks.Poststart = l.hook("poststart", "exit 1") }))
	killed := make(chan struct{})
	b.agent().on("task.Kill", func(context.Context) error {
		close(killed)
		b.agent().exit("c1", "", 137)
		return nil
	})
	var failure *hooks.Error
	if err := c.Start(b.within(), ""); !errors.As(err, &failure) {
		t.Errorf("got %v, want the hook's failure", err)
	}
	<-killed
	b.wantExit(b.wait(c, ""), 137)
	_, err := c.Delete(b.within(), "")
	must(t, err)
	l.want("prestart", "createRuntime", "poststart", "poststop")
}

// A shim that is killed leaves its receipts, and `delete` reads them.
func TestHooksAfterAKilledShim(t *testing.T) {
	b := newBed(t)
	l := newHookLog(b)
	r := b.request("c1", l.all)
	must(t, b.create(r).Start(b.within(), ""))
	book, err := OpenReceipts(r.Bundle)
	must(t, err)
	must(t, book.UndoAll(b.within()))
	l.want("prestart", "createRuntime", "poststart", "poststop")
}
