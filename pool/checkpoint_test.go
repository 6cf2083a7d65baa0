//go:build linux || freebsd

package pool

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	poolv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/pool/api/v1"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/pool/client"
)

// cold waits for the template's checkpoint and returns its directory.
func (r *rig) checkpointDir(c *client.Client) string {
	r.Helper()
	var id string
	r.eventually(func() error {
		s := r.status(c).Templates[0]
		if id = s.Checkpoint.GetId(); id == "" {
			return fmt.Errorf("no checkpoint: %s", s.Trouble)
		}
		return nil
	})
	return filepath.Join(options(r.dir).Root, checkpointsDir, id)
}

func changeManifest(change func(*manifest)) func(t *testing.T, dir string) {
	return func(t *testing.T, dir string) {
		var m manifest
		path := filepath.Join(dir, manifestName)
		if err := readJSON(path, &m); err != nil {
			t.Fatal(err)
		}
		change(&m)
		data, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func onMemory(f func(path string, size int64) error) func(t *testing.T, dir string) {
	return func(t *testing.T, dir string) {
		path := filepath.Join(dir, "machine", "memory")
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := f(path, st.Size()); err != nil {
			t.Fatal(err)
		}
	}
}

func flip(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, size/2); err != nil {
		return err
	}
	b[0] ^= 1
	_, err = f.WriteAt(b, size/2)
	return err
}

// A checkpoint that is not what it was is refused with the reason, before the
// daemon starts and while it runs, and the pool goes on with another.
func TestBadCheckpointIsRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		spoil func(t *testing.T, dir string)
		// reason is what the status says, running whether a running daemon notices.
		reason  string
		running bool
	}{
		"truncated": {onMemory(func(path string, size int64) error { return os.Truncate(path, size-1) }), "saved memory", true},
		"altered":   {onMemory(flip), "saved memory", true},
		"missing":   {onMemory(func(path string, _ int64) error { return os.Remove(path) }), "saved memory", true},
		"replaced by a link": {onMemory(func(path string, _ int64) error {
			if err := os.Rename(path, path+".aside"); err != nil {
				return err
			}
			return os.Symlink(path+".aside", path)
		}), "saved memory: it is not a file", true},
		"no manifest":     {func(t *testing.T, dir string) { os.Remove(filepath.Join(dir, manifestName)) }, "manifest", false},
		"another format":  {changeManifest(func(m *manifest) { m.Format++ }), "format", false},
		"another id":      {changeManifest(func(m *manifest) { m.ID = "x.1" }), "made as", false},
		"another monitor": {changeManifest(func(m *manifest) { m.Backend = "other" }), "made with", false},
		"another agent":   {changeManifest(func(m *manifest) { m.Protocol++ }), "protocol", false},
		"another host":    {changeManifest(func(m *manifest) { m.Host.CPU = "other" }), "another host", false},
	} {
		for _, running := range []bool{false, true} {
			if running && !tc.running {
				continue
			}
			t.Run(fmt.Sprintf("%s running=%v", name, running), func(t *testing.T) {
				r := newRig(t)
				d := r.startDaemon()
				c := r.serves(d)
				tmpl := r.add(c, r.template(cold))
				dir := r.checkpointDir(c)
				// Machines have come from it, so that it has been verified.
				r.warm(c, tmpl.Name, 1)
				if !running {
					d.kill()
				}
				tc.spoil(t, dir)
				if !running {
					d = r.startDaemon()
					c = r.serves(d)
				}
				if _, err := c.Evict(t.Context(), &poolv1.EvictRequest{}); err != nil {
					t.Fatal(err)
				}
				r.warm(c, tmpl.Name, 2)
				if again := r.checkpointDir(c); again == dir {
					t.Errorf("checkpoint %s is used", dir)
				}
				if !strings.Contains(d.said(), tc.reason) {
					t.Errorf("the log does not say %q:\n%s", tc.reason, d.said())
				}
				found, err := c.GC(t.Context(), nil)
				if err != nil {
					t.Fatal(err)
				}
				if text := strings.Join(found.Lines, "\n"); !strings.Contains(text, filepath.Base(dir)) {
					t.Errorf("gc has removed %q, want the bad checkpoint too", text)
				}
				if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("it is still there: %v", err)
				}
				if err := os.RemoveAll(dir); err != nil {
					t.Error(err)
				}
				if _, err := c.RemoveTemplate(t.Context(), &poolv1.TemplateRequest{Name: tmpl.Name}); err != nil {
					t.Error(err)
				}
				r.eventually(r.noMachines)
				_ = d.cmd.Process.Signal(unix.SIGTERM)
				<-d.done
			})
		}
	}
}

// A checkpoint that the backend will not restore is refused as well, and nobody
// who waits for machines hears more of it than that it takes longer.
func TestCheckpointThatDoesNotRestore(t *testing.T) {
	for name, failure := range map[string]error{"refused": errdefs.ErrFailedPrecondition, "fails": errors.New("broken")} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			var bad atomic.Value
			bad.Store("")
			r.backend.Fail = func(op string) error {
				if op == "restore" && bad.Load() != "" {
					return failure
				}
				return nil
			}
			p := r.open(t.Context())
			c := r.dial()
			tmpl := r.add(c, r.template(cold))
			dir := r.checkpointDir(c)
			bad.Store(dir)
			err := c.Warm(r.context(), tmpl.Name, 1, func(int, int) {})
			if errdefs.IsFailedPrecondition(failure) && err != nil {
				t.Errorf("warm: %v", err)
			}
			// Three in a row are enough of the other kind.
			r.eventually(func() error {
				p.mu.Lock()
				defer p.mu.Unlock()
				if s := p.templates[tmpl.Name]; s.cold != nil && s.cold.dir == dir && s.cold.refused == nil {
					s.retry.next = time.Time{}
					s.warm = 1
					p.poke()
					return errors.New("it is still used")
				}
				return nil
			})
			bad.Store("")
			r.warm(c, tmpl.Name, 2)
		})
	}
}

// With no room on disk there is no checkpoint, and machines are booted.
func TestNoRoomForACheckpoint(t *testing.T) {
	r := newRig(t)
	r.backend.Fail = func(op string) error {
		if op == "checkpoint" {
			return unix.ENOSPC
		}
		return nil
	}
	r.open(t.Context())
	c := r.dial()
	tmpl := r.add(c, r.template(cold))
	r.eventually(func() error {
		if s := r.status(c).Templates[0]; !strings.Contains(s.Trouble, unix.ENOSPC.Error()) {
			return fmt.Errorf("trouble is %q", s.Trouble)
		}
		return nil
	})
	r.eventually(func() error {
		_, err := c.Evict(r.context(), &poolv1.EvictRequest{})
		if err != nil {
			return err
		}
		r.warm(c, tmpl.Name, 1)
		if s := r.status(c).Templates[0]; s.MadeBoot == 0 {
			return fmt.Errorf("no machine was booted: %v", s)
		}
		return nil
	})
	if left := r.checkpointsOnDisk(); len(left) > 0 {
		t.Errorf("checkpoints are left: %q", left)
	}
}
