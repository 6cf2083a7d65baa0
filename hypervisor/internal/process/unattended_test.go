package process

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/proc"
)

// unattended are the processes of nobody's with directories below dir.
func unattended(t *testing.T, dir string) (ids []proc.ID) {
	t.Helper()
	orphans, err := Unattended(dir, func(string) bool { return false })
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range orphans {
		ids = append(ids, o.ID)
	}
	return ids
}

// A process is somebody's from one owner's Start to the next one's Adopt, and
// nobody's when both are gone, whatever is left of its directory.
func TestUnattended(t *testing.T) {
	p, book := start(t, "echo up; read _; :")
	until(t, func() bool { return string(p.Console()) == "up\n" })
	dir := p.Cmd.Dir
	above := filepath.Dir(dir)
	if ids := unattended(t, above); len(ids) != 0 {
		t.Errorf("%v with an owner", ids)
	}
	heir, err := Adopt(log.L, dir, p.ID(), book, "0f4f6a3e-7ed5-4f0e-9d0f-5b9c3c1a2d11")
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Disown(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if ids := unattended(t, above); len(ids) != 0 {
		t.Errorf("%v with an heir", ids)
	}
	if err := heir.Disown(); err != nil {
		t.Fatal(err)
	}
	if ids := unattended(t, above); !slices.Equal(ids, []proc.ID{p.ID()}) {
		t.Errorf("%v without anybody, want %v", ids, p.ID())
	}
	// Neither its own directory nor one beside it is above it.
	for _, other := range []string{dir, filepath.Join(above, "other"), above + "x"} {
		if ids := unattended(t, other); len(ids) != 0 {
			t.Errorf("%v below %s", ids, other)
		}
	}

	if orphans, err := Unattended(above, func(of string) bool { return of == dir }); err != nil || len(orphans) != 0 {
		t.Errorf("%v though it is known, %v", orphans, err)
	}
	orphans, err := Unattended(above, func(string) bool { return false })
	if err != nil || len(orphans) != 1 || orphans[0].Dir != dir {
		t.Fatalf("%v, %v", orphans, err)
	}
	if err := orphans[0].Kill(t.Context()); err != nil {
		t.Error(err)
	}
	<-p.Exited()
	if err := orphans[0].Kill(t.Context()); err != nil {
		t.Errorf("one that has ended: %v", err)
	}
}

func TestWhatHasAnOwnerAgainIsNotKilled(t *testing.T) {
	p, _ := start(t, "read _; :")
	o := Orphan{ID: p.ID(), Dir: p.Cmd.Dir}
	if err := o.Kill(t.Context()); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("kill: %v", err)
	}
	if p.HasExited() {
		t.Error("it was killed")
	}
}
