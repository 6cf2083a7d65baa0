//go:build linux || freebsd

package pool

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/proc"
	poolv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/pool/api/v1"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/pool/client"
)

// entryDirs are the directories of the pool's entries.
func (r *rig) entryDirs() []string {
	r.Helper()
	dirs, err := filepath.Glob(filepath.Join(options(r.dir).State, entriesDir, "*"))
	if err != nil {
		r.Fatal(err)
	}
	return dirs
}

// check are the daemon's findings.
func (r *rig) check(c *client.Client) []*poolv1.Finding {
	r.Helper()
	found, err := c.Check(r.context(), nil)
	if err != nil {
		r.Fatal(err)
	}
	if len(found.Lines) != len(found.Findings) {
		r.Errorf("%d lines for %d findings", len(found.Lines), len(found.Findings))
	}
	return found.Findings
}

// alive are those of ids that run.
func (r *rig) alive(ids []proc.ID) (alive []proc.ID) {
	r.Helper()
	for _, id := range ids {
		is, err := id.Alive()
		if err != nil {
			r.Fatal(err)
		}
		if is {
			alive = append(alive, id)
		}
	}
	return alive
}

// Machines whose records somebody has removed are found and ended, and nobody
// else's are: not those with records, nor a claimed one without, nor another
// pool's.
func TestLostMachines(t *testing.T) {
	other := newRig(t)
	otherDaemon := other.startDaemon()
	otherTmpl := other.add(other.serves(otherDaemon), other.template())
	other.warm(other.dial(), otherTmpl.Name, 1)
	otherDaemon.kill()
	theirs := other.recorded()

	r := newRig(t)
	d := r.startDaemon()
	c := r.serves(d)
	tmpl := r.add(c, r.template())
	r.warm(c, tmpl.Name, 4)
	claimed, err := r.claim(c, tmpl)
	if err != nil {
		t.Fatal(err)
	}
	d.kill()
	var lost []string
	var ended []proc.ID
	for _, dir := range r.entryDirs() {
		var rec record
		if err := readJSON(filepath.Join(dir, entryName), &rec); err != nil {
			t.Fatal(err)
		}
		switch {
		case rec.State == stateGiven:
		case len(lost) < 2:
			lost, ended = append(lost, rec.ID), append(ended, rec.Machine.Process)
		default:
			continue
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(lost)

	d = r.startDaemon()
	c = r.serves(d)
	var found []string
	for _, f := range r.check(c) {
		if f.Kind != kindMachine {
			t.Errorf("found %v", f)
		}
		found = append(found, f.Name)
	}
	if !slices.Equal(found, lost) {
		t.Errorf("found machines %q, want %q", found, lost)
	}
	if alive := r.alive(ended); len(alive) != 2 {
		t.Errorf("check has ended machines: %v of %v are left", alive, ended)
	}
	gone, err := c.GC(r.context(), nil)
	if err != nil || len(gone.Findings) != 2 {
		t.Errorf("gc: %v, %v", gone, err)
	}
	if alive := r.alive(ended); len(alive) != 0 {
		t.Errorf("left after gc: %v", alive)
	}
	if found := r.check(c); len(found) != 0 {
		t.Errorf("found after gc: %v", found)
	}
	if s := r.status(c).Templates[0]; s.Hot != 1 {
		t.Errorf("%d machines with records wait, want 1", s.Hot)
	}
	select {
	case <-claimed.Done():
		t.Error("the claimed machine has ended")
	default:
	}
	if alive := other.alive(theirs); len(alive) != 1 {
		t.Error("the other pool's machine has ended")
	}
	if _, err := c.Drain(r.context(), nil); err != nil {
		t.Error(err)
	}
	other.undoEntries()
}

// What an entry has receipts for is undone though its record was removed.
func TestEntryWithoutRecord(t *testing.T) {
	r := newRig(t)
	d := r.startDaemon()
	c := r.serves(d)
	tmpl := r.add(c, r.template())
	r.warm(c, tmpl.Name, 2)
	d.kill()
	machines := r.machines()
	dirs := r.entryDirs()
	if len(dirs) != 2 {
		t.Fatalf("entries: %q", dirs)
	}
	if err := os.Remove(filepath.Join(dirs[0], entryName)); err != nil {
		t.Fatal(err)
	}
	d = r.startDaemon()
	c = r.serves(d)
	if alive := r.alive(machines); len(alive) != 1 {
		t.Errorf("machines %v of %v live, want that with a record", alive, machines)
	}
	if found := r.check(c); len(found) != 0 || len(r.entryDirs()) != 1 {
		t.Errorf("found %v, entries %q", found, r.entryDirs())
	}
	if s := r.status(c).Templates[0]; s.Hot != 1 {
		t.Errorf("%d machines wait, want 1", s.Hot)
	}
	if _, err := c.Drain(r.context(), nil); err != nil {
		t.Error(err)
	}
}
