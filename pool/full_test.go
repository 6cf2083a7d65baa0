//go:build linux

package pool

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	poolv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/pool/api/v1"
)

// onSmallDisk puts the pool's directories on a file system of their own, and
// returns what fills it to the last byte and what makes room again.
func (r *rig) onSmallDisk() (fill, free func()) {
	r.Helper()
	if os.Getuid() != 0 {
		r.Skip("needs root: mounts a file system")
	}
	disk := filepath.Join(r.dir, "disk")
	if err := os.Mkdir(disk, 0o700); err != nil {
		r.Fatal(err)
	}
	if err := unix.Mount("pool", disk, "tmpfs", 0, "size=1m"); err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() {
		if err := unix.Unmount(disk, unix.MNT_DETACH); err != nil {
			r.Error(err)
		}
	})
	o := options(r.dir)
	for _, dir := range []string{o.Root, o.State} {
		at := filepath.Join(disk, filepath.Base(dir))
		if err := errors.Join(os.Mkdir(at, 0o700), os.Symlink(at, dir)); err != nil {
			r.Fatal(err)
		}
	}
	filler := filepath.Join(disk, "filler")
	fill = func() {
		r.Helper()
		f, err := os.Create(filler)
		if err != nil {
			r.Fatal(err)
		}
		defer f.Close()
		page := make([]byte, os.Getpagesize())
		for err == nil {
			_, err = f.Write(page)
		}
		if !errors.Is(err, unix.ENOSPC) {
			r.Fatal(err)
		}
	}
	return fill, func() {
		r.Helper()
		if err := os.Remove(filler); err != nil {
			r.Fatal(err)
		}
	}
}

// With no room for a record nothing is handed out, and nothing is lost: neither
// what waits, nor the checkpoint, nor a template, and all of it is of use when
// there is room again, to the next daemon as well.
func TestFullDisk(t *testing.T) {
	r := newRig(t)
	fill, free := r.onSmallDisk()
	d := r.startDaemon()
	c := r.serves(d)
	tmpl := r.add(c, r.template(cold))
	dir := r.checkpointDir(c)
	r.warm(c, tmpl.Name, 2)
	waiting := r.status(c).Templates[0].Hot

	fill()
	for range 3 {
		if _, err := r.claim(c, tmpl); !errdefs.IsUnavailable(err) {
			t.Errorf("claim on a full disk: %v, want unavailable", err)
		}
	}
	if _, err := c.Checkpoint(r.context(), &poolv1.TemplateRequest{Name: tmpl.Name}); err == nil {
		t.Error("a checkpoint was made on a full disk")
	}
	other := r.template(func(t *poolv1.Template) { t.Name = "other" })
	if _, err := c.AddTemplate(r.context(), &poolv1.AddTemplateRequest{Template: other}); err == nil {
		t.Error("a template was stored on a full disk")
	}
	s := r.status(c)
	if got := s.Templates[0]; len(s.Templates) != 1 || got.Hot != waiting || got.Offered != 0 || r.checkpointDir(c) != dir {
		t.Errorf("after that: %v", s)
	}

	free()
	if m, err := r.claim(c, tmpl); err != nil || m.Tier != poolv1.Tier_TIER_HOT {
		t.Errorf("claim with room again: %v", err)
	}
	fill()
	d.kill()
	d = r.startDaemon()
	c = r.serves(d)
	// Taking a machine up needs room for a receipt; what cannot be taken up goes.
	if r.checkpointDir(c) != dir || len(r.checkpointsOnDisk()) != 1 {
		t.Errorf("checkpoints after a restart on a full disk: %q", r.checkpointsOnDisk())
	}
	free()
	r.warm(c, tmpl.Name, 2)
	if s := r.status(c).Templates[0]; s.MadeBoot != 0 {
		t.Errorf("machines were booted beside a checkpoint: %v", s)
	}
	if _, err := c.RemoveTemplate(r.context(), &poolv1.TemplateRequest{Name: tmpl.Name}); err != nil {
		t.Error(err)
	}
	r.eventually(func() error {
		found, err := c.GC(r.context(), nil)
		if err == nil && len(found.Lines) > 0 {
			err = fmt.Errorf("gc has found %q", found.Lines)
		}
		return err
	})
	_ = d.cmd.Process.Signal(unix.SIGTERM)
	<-d.done
}
