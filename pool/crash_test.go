//go:build linux || freebsd

package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	poolv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/pool/api/v1"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/pool/client"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/pool/internal/fakevm"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"
)

// life is everything that a daemon does, in order, as far as it lives to do it.
type life struct {
	*rig
	c       *client.Client
	tmpl    *poolv1.Template
	claimed []*client.Claimed
	books   []*receipt.Book
	// forgotten is set once the checkpoint may go.
	forgotten bool
}

func (l *life) steps() []func(context.Context) error {
	return []func(context.Context) error{
		l.addTemplate, l.warmUp, l.claimHot, l.claimCold, l.evict, l.removeTemplate,
	}
}

func (l *life) addTemplate(ctx context.Context) (err error) {
	l.tmpl, err = l.c.AddTemplate(ctx, &poolv1.AddTemplateRequest{Template: l.template(cold)})
	if err != nil {
		return err
	}
	// Until the keeper has made the checkpoint, or the daemon has ended.
	l.eventually(func() error {
		var s *poolv1.StatusResponse
		if s, err = l.c.Status(ctx, nil); err == nil && s.Templates[0].Checkpoint == nil {
			return errors.New("no checkpoint")
		}
		return nil
	})
	return err
}

func (l *life) warmUp(ctx context.Context) error {
	return l.c.Warm(ctx, l.tmpl.Name, 2, func(int, int) {})
}

func (l *life) claimHot(ctx context.Context) error {
	if err := l.claimOne(ctx); err != nil {
		return err
	}
	_, err := l.c.Evict(ctx, &poolv1.EvictRequest{})
	return err
}

func (l *life) claimCold(ctx context.Context) error { return l.claimOne(ctx) }

func (l *life) claimOne(ctx context.Context) error {
	book, err := receipt.Open(filepath.Join(l.TempDir(), "receipts"))
	if err != nil {
		return err
	}
	m, err := l.c.Claim(ctx, client.Want{Shape: l.tmpl.Shape}, fakevm.Backend{}, book)
	if err != nil {
		if book.Len() > 0 {
			l.Errorf("%d receipts after a claim that failed: %v", book.Len(), err)
		}
		return err
	}
	l.claimed, l.books = append(l.claimed, m), append(l.books, book)
	return nil
}

func (l *life) evict(ctx context.Context) error {
	if err := l.warmUp(ctx); err != nil {
		return err
	}
	l.forgotten = true
	_, err := l.c.Evict(ctx, &poolv1.EvictRequest{Cold: true})
	return err
}

func (l *life) removeTemplate(ctx context.Context) error {
	_, err := l.c.RemoveTemplate(ctx, &poolv1.TemplateRequest{Name: l.tmpl.Name})
	return err
}

// live goes through the steps until one fails.
func (l *life) live(ctx context.Context) error {
	for i, step := range l.steps() {
		if err := step(ctx); err != nil {
			return fmt.Errorf("step %d: %w", i, err)
		}
	}
	return nil
}

// checkpointsOnDisk are those that are complete.
func (r *rig) checkpointsOnDisk() []string {
	r.Helper()
	ids, err := names(filepath.Join(options(r.dir).Root, checkpointsDir))
	if err != nil {
		r.Fatal(err)
	}
	return slices.DeleteFunc(ids, func(id string) bool { return strings.HasPrefix(id, unfinished) })
}

// TestCrash kills the daemon after each single effect of its life, and looks at
// what the next one makes of it.
func TestCrash(t *testing.T) {
	if testing.Short() {
		t.Skip("half a minute of daemons that are killed")
	}
	for _, at := range traceLife(t) {
		t.Run(strings.ReplaceAll(at, " ", "_"), func(t *testing.T) { crashAt(t, at) })
	}
}

// traceLife lists the effects of a life that is not cut short, as NAME#N.
func traceLife(t *testing.T) (all []string) {
	r := newRig(t)
	trace := filepath.Join(t.TempDir(), "trace")
	d := r.startDaemon(traceEnv + "=" + trace)
	l := &life{rig: r, c: r.serves(d)}
	if err := l.live(r.context()); err != nil {
		t.Fatalf("%v\n%s", err, d.said())
	}
	l.end(d)
	data, err := os.ReadFile(trace)
	if err != nil {
		t.Fatal(err)
	}
	count := map[string]int{}
	for name := range strings.Lines(string(data)) {
		name = strings.TrimSpace(name)
		count[name]++
		// The first two of a kind are in different circumstances; the tenth is not.
		if count[name] <= 2 {
			all = append(all, fmt.Sprintf("%s#%d", name, count[name]))
		}
	}
	if len(all) < 25 {
		t.Fatalf("only %d effects: %q", len(all), all)
	}
	return all
}

func crashAt(t *testing.T, at string) {
	r := newRig(t)
	d := r.startDaemon(crashEnv + "=" + at)
	l := &life{rig: r, c: r.serves(d)}
	if err := l.live(r.context()); err == nil {
		// Counts differ a little from life to life.
		select {
		case <-d.done:
		default:
			d.kill()
		}
	}
	<-d.done
	saved := r.checkpointsOnDisk()
	mine := map[int]bool{}
	for _, m := range l.claimed {
		mine[m.Pid()] = true
	}

	d = r.startDaemon()
	l.c = r.serves(d)
	if l.c == nil {
		t.Fatalf("the next daemon does not serve: %s", d.said())
	}
	found, err := l.c.Check(r.context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(found.Lines) > 0 {
		t.Errorf("the next daemon has lost track: %q", found.Lines)
	}
	// The next daemon may have made one that was missing.
	left := r.checkpointsOnDisk()
	lost := slices.DeleteFunc(slices.Clone(saved), func(id string) bool { return slices.Contains(left, id) })
	if !l.forgotten && len(lost) > 0 {
		t.Errorf("checkpoints were %q, and are %q", saved, left)
	}
	s := r.status(l.c)
	if running := len(r.machines()); len(s.Templates) > 0 && running > int(s.Templates[0].Hot)+int(s.Templates[0].Offered)+int(s.Templates[0].Making)+len(mine) {
		// One that is being made may not be counted yet, and no other.
		r.eventually(func() error {
			s, err := l.c.Status(r.context(), nil)
			if err != nil {
				return err
			}
			now := s.Templates[0]
			if n := len(r.machines()); n > int(now.Hot+now.Offered+now.Making)+len(mine) {
				return fmt.Errorf("%d machines run, the pool knows of %v and %d were claimed", n, now, len(mine))
			}
			return nil
		})
	}
	// All of a life goes on from here, and hands out nothing that was handed out.
	before := len(l.claimed)
	if err := l.live(r.context()); err != nil {
		t.Fatalf("%v\n%s", err, d.said())
	}
	for _, m := range l.claimed[before:] {
		if mine[m.Pid()] {
			t.Errorf("machine %d was handed out twice", m.Pid())
		}
	}
	for _, m := range l.claimed[:before] {
		select {
		case <-m.Done():
			t.Errorf("machine %d of a claimant has ended with the daemon", m.Pid())
		default:
		}
	}
	l.end(d)
}

// end destroys what was claimed, ends the daemon, and looks for what is left.
func (l *life) end(d *daemon) {
	l.Helper()
	for i, m := range l.claimed {
		if err := m.Destroy(context.Background()); err != nil {
			l.Error(err)
		}
		if n := l.books[i].Len(); n > 0 {
			l.Errorf("%d receipts of a machine that was destroyed", n)
		}
	}
	// What was offered, and never heard of by its claimant, is there for a while.
	l.eventually(l.nothing)
	if err := d.cmd.Process.Signal(unix.SIGTERM); err != nil {
		l.Error(err)
	}
	<-d.done
	if code := d.cmd.ProcessState.ExitCode(); code != 0 {
		l.Errorf("the daemon has exited with %d: %s", code, d.said())
	}
	if err := l.nothing(); err != nil {
		l.Error(err)
	}
}

// nothing returns what there is of machines and of the pool's files.
func (l *life) nothing() error {
	for _, dir := range []string{
		filepath.Join(options(l.dir).State, entriesDir), filepath.Join(options(l.dir).Root, checkpointsDir), filepath.Join(options(l.dir).Root, templatesDir),
	} {
		if left, err := names(dir); err != nil || len(left) > 0 {
			return fmt.Errorf("left in %s: %q, %v", dir, left, err)
		}
	}
	return l.noMachines()
}

// A hot machine that cannot be taken up is destroyed: nobody else knows of it.
func TestHotMachineThatIsNotTakenUp(t *testing.T) {
	r := newRig(t)
	d := r.startDaemon()
	c := r.serves(d)
	tmpl := r.add(c, r.template())
	r.warm(c, tmpl.Name, 1)
	d.kill()
	entries := filepath.Join(options(r.dir).State, entriesDir)
	ids, err := names(entries)
	if err != nil || len(ids) != 1 {
		t.Fatalf("entries: %q, %v", ids, err)
	}
	// The book of the next adoption cannot be opened.
	if err := os.MkdirAll(filepath.Join(entries, ids[0], "receipts-2", "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(r.socket()); err != nil {
		t.Fatal(err)
	}
	p := r.open(t.Context())
	r.eventually(r.noMachines)
	if found, err := p.Check(t.Context()); err != nil || len(found) != 0 {
		t.Errorf("check: %q, %v", found, err)
	}
	if left, err := names(entries); err != nil || len(left) != 0 {
		t.Errorf("entries that are left: %q, %v", left, err)
	}
}

// TestCrashInRecovery kills the daemon that takes up what another has left.
func TestCrashInRecovery(t *testing.T) {
	for _, at := range []string{"recover: adopted#1", "recover: adopted#2", "recover: record#1", "recover: record#2"} {
		t.Run(strings.ReplaceAll(at, " ", "_"), func(t *testing.T) {
			r := newRig(t)
			d := r.startDaemon()
			l := &life{rig: r, c: r.serves(d)}
			l.tmpl = r.add(l.c, r.template())
			r.warm(l.c, l.tmpl.Name, 2)
			d.kill()
			d = r.startDaemon(crashEnv + "=" + at)
			<-d.done
			d = r.startDaemon()
			l.c = r.serves(d)
			if s := r.status(l.c).Templates[0]; s.Hot != 2 || len(r.machines()) != 2 {
				t.Errorf("two machines waited, and now %d of %d do", s.Hot, len(r.machines()))
			}
			for range 2 {
				if err := l.claimOne(r.context()); err != nil {
					t.Error(err)
				}
			}
			if err := l.removeTemplate(r.context()); err != nil {
				t.Error(err)
			}
			l.end(d)
		})
	}
}
