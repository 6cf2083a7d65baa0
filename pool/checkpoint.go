package pool

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/durable"
)

// manifestName is a checkpoint's manifest. It is written last, before the
// directory gets its final name.
const manifestName = "manifest.json"

// manifestFormat is the revision of manifest that is written and read.
const manifestFormat = 2

// manifest is everything by which a checkpoint that does not fit is refused. The
// backend refuses for reasons of its own, see hypervisor.Restorer.
type manifest struct {
	Format int    `json:"format"`
	ID     string `json:"id"`
	// Backend is hypervisor.Backend.Name of the one that wrote the files.
	Backend string `json:"backend"`
	// Protocol is the agentproto.Version of the agent in the memory.
	Protocol uint32    `json:"protocol"`
	Template Template  `json:"template"`
	Made     time.Time `json:"made"`
	// Host is what of this host the files depend on.
	Host hostIdentity `json:"host"`
}

// checkpoint is a cold entry: any number of machines are made of it. nil is a
// legal receiver that stands for a boot.
type checkpoint struct {
	manifest
	dir   string
	bytes uint64

	// users counts those who are restoring from it. It is guarded by Pool.mu.
	users int
	// refused is why it may not be used. It is guarded by Pool.mu.
	refused error
	// failures counts restores in a row that came to nothing, for no reason that
	// lies in the files. It is guarded by Pool.mu.
	failures int
}

// maxRestoreFailures is after how many restores in a row that came to nothing a
// checkpoint is held to be bad, whatever its digests say.
const maxRestoreFailures = 3

func (c *checkpoint) machineDir() string { return filepath.Join(c.dir, "machine") }

func (c *checkpoint) use() {
	if c != nil {
		c.users++
	}
}

func (c *checkpoint) unuse() {
	if c != nil {
		c.users--
	}
}

// refusal is a checkpoint that must not be used. It is
// errdefs.ErrFailedPrecondition.
type refusal struct{ id, reason string }

func (r *refusal) Error() string { return fmt.Sprintf("checkpoint %s is refused: %s", r.id, r.reason) }
func (r *refusal) Unwrap() error { return errdefs.ErrFailedPrecondition }

// openCheckpoint reads a checkpoint's manifest and compares it with this host. A
// *refusal has the reason. The machine's files are the backend's, which refuses
// those that are not as it has written them: see hypervisor.Restorer.
func openCheckpoint(dir, backend string) (*checkpoint, error) {
	c := &checkpoint{dir: dir}
	id := filepath.Base(dir)
	refuse := func(format string, args ...any) error { return &refusal{id, fmt.Sprintf(format, args...)} }
	if err := readJSON(filepath.Join(dir, manifestName), &c.manifest); err != nil {
		return nil, refuse("its manifest: %v", err)
	}
	m := &c.manifest
	switch host := thisHost(); {
	case m.Format != manifestFormat:
		return nil, refuse("its format is %d, this program's %d", m.Format, manifestFormat)
	case m.ID != id:
		return nil, refuse("it was made as %q", m.ID)
	case m.Backend != backend:
		return nil, refuse("it was made with %q, machines here are of %q", m.Backend, backend)
	case m.Protocol != agentproto.Version:
		return nil, refuse("its agent speaks protocol %d, this program %d", m.Protocol, agentproto.Version)
	case m.Host != host:
		return nil, refuse("it was made on another host: %s; this is %s", m.Host, host)
	}
	var err error
	if c.bytes, err = bytesOnDisk(c.machineDir()); err != nil {
		return nil, fmt.Errorf("checkpoint %s: %w", id, err)
	}
	return c, nil
}

// bytesOnDisk is what the files below dir take. Memory that a guest has not
// touched is a hole.
func bytesOnDisk(dir string) (n uint64, err error) {
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st, err := d.Info()
		if err != nil {
			return err
		}
		if sys, ok := st.Sys().(*syscall.Stat_t); ok {
			n += uint64(sys.Blocks) * 512
		}
		return nil
	})
	return n, err
}

// canSave returns errdefs.ErrNotImplemented for a template that wants a
// checkpoint where none can be made.
func (p *Pool) canSave(t Template) error {
	if _, ok := p.opts.Backend.(hypervisor.Restorer); t.Cold && !ok {
		return fmt.Errorf("template %s: checkpoints with %s: %w", t.Name, p.opts.Backend.Name(), errdefs.ErrNotImplemented)
	}
	return nil
}

// save makes a checkpoint of t and returns it under its final name. On error
// nothing is left.
func (p *Pool) save(ctx context.Context, t Template) (_ *checkpoint, err error) {
	if _, ok := p.opts.Backend.(hypervisor.Restorer); !ok {
		return nil, fmt.Errorf("checkpoint with %s: %w", p.opts.Backend.Name(), errdefs.ErrNotImplemented)
	}
	id := p.newID(t.Name)
	parent := filepath.Join(p.opts.Root, checkpointsDir)
	c := &checkpoint{dir: filepath.Join(parent, unfinished+id)}
	if err := os.MkdirAll(c.machineDir(), 0o700); err != nil {
		return nil, fmt.Errorf("checkpoint %s: %w", id, err)
	}
	p.step("save: directory")
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(c.dir))
		}
	}()
	if err := p.saveMachine(ctx, t, c.machineDir()); err != nil {
		return nil, err
	}
	p.step("save: machine released")
	c.manifest = manifest{
		Format: manifestFormat, ID: id, Backend: p.opts.Backend.Name(), Protocol: agentproto.Version,
		Template: t, Made: time.Now(), Host: thisHost(),
	}
	if err := durable.WriteJSON(filepath.Join(c.dir, manifestName), c.manifest); err != nil {
		return nil, fmt.Errorf("checkpoint %s: %w", id, err)
	}
	p.step("save: manifest")
	final := filepath.Join(parent, id)
	if err := os.Rename(c.dir, final); err != nil {
		return nil, fmt.Errorf("checkpoint %s: %w", id, err)
	}
	c.dir = final
	if err := durable.SyncDir(parent); err != nil {
		return nil, fmt.Errorf("checkpoint %s: %w", id, err)
	}
	p.step("save: named")
	return openCheckpoint(final, p.opts.Backend.Name())
}

// saveMachine boots a machine, saves it in dir and releases it.
func (p *Pool) saveMachine(ctx context.Context, t Template, dir string) (err error) {
	e, err := p.create(ctx, t, nil, dir, t.rehearses(nil))
	if err != nil {
		return err
	}
	defer func() {
		p.mu.Lock()
		e.State = stateDoomed
		p.mu.Unlock()
		err = errors.Join(err, p.discard(ctx, e))
	}()
	saver, ok := e.machine.(hypervisor.Checkpointer)
	if !ok {
		return fmt.Errorf("checkpoint machine %s: %w", e.ID, errdefs.ErrNotImplemented)
	}
	ctx, cancel := context.WithTimeout(ctx, checkpointTimeout)
	defer cancel()
	if err := saver.Checkpoint(ctx); err != nil {
		return err
	}
	p.step("save: machine saved")
	return nil
}

// saveCold makes the checkpoint of a template, which is marked as saving.
func (p *Pool) saveCold(ctx context.Context, s *stock, t Template) error {
	began := time.Now()
	c, err := p.save(ctx, t)
	p.mu.Lock()
	p.admission.done(t.memory())
	p.making--
	s.saving = false
	if err == nil {
		p.checkpoints[c.ID] = c
		// Whether it is any good is told by the first machine that is made of it.
		s.resave.err = nil
		if p.templates[t.Name] == s && sameMachines(s.Template, t) {
			s.cold, s.refused = c, nil
		}
	} else {
		s.resave.failed(time.Now(), err)
	}
	p.announce()
	p.mu.Unlock()
	l := log.G(p.ctx).WithFields(log.Fields{"template": t.Name, "took": time.Since(began).Milliseconds()})
	if err == nil {
		l.WithField("checkpoint", c.ID).Info("checkpoint made")
	} else if p.ctx.Err() == nil {
		l.WithError(err).Warn("no checkpoint could be made")
	}
	p.poke()
	return err
}

// Checkpoint makes a template's checkpoint anew, and returns once that is done.
// The former one goes when no machine that was made from it is left.
func (p *Pool) Checkpoint(ctx context.Context, name string) error {
	p.mu.Lock()
	s := p.templates[name]
	err := p.mayMake(s, name)
	if err == nil && s.saving {
		err = fmt.Errorf("template %s: a checkpoint is being made: %w", name, errdefs.ErrUnavailable)
	}
	if err == nil {
		err = p.admit(s.Template)
	}
	if err != nil {
		p.mu.Unlock()
		return err
	}
	s.saving = true
	p.making++
	t := s.Template
	p.mu.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(p.ctx, cancel)()
	return p.saveCold(ctx, s, t)
}

// usable is the template's checkpoint, if it may be used. The caller holds mu.
func (s *stock) usable() *checkpoint {
	if s.cold == nil || s.cold.refused != nil {
		return nil
	}
	return s.cold
}

// blame holds a failure to restore against the checkpoint, and reports whether it
// is refused for it. The caller holds mu.
func (p *Pool) blame(s *stock, c *checkpoint, err error) bool {
	// A closing pool's failures say nothing.
	if c == nil || p.ctx.Err() != nil {
		return false
	}
	if c.refused != nil {
		return true
	}
	c.failures++
	switch {
	case errdefs.IsFailedPrecondition(err):
		c.refused = &refusal{c.ID, err.Error()}
	case c.failures >= maxRestoreFailures:
		c.refused = &refusal{c.ID, fmt.Sprintf("%d restores in a row have failed, the last: %v", c.failures, err)}
	default:
		return false
	}
	s.refused = c.refused
	// One after the other might be made to be refused.
	s.resave.failed(time.Now(), c.refused)
	log.G(p.ctx).WithField("template", s.Name).Error(c.refused)
	return true
}

// removeCheckpoints removes those that no template has and no machine was made
// from, as far as the pool knows of its machines. One that was refused is left
// for somebody to look at, until GC.
func (p *Pool) removeCheckpoints() error {
	p.mu.Lock()
	wanted := map[string]bool{}
	for _, s := range p.templates {
		if s.cold != nil {
			wanted[s.cold.ID] = true
		}
	}
	for _, e := range p.entries {
		wanted[e.Checkpoint] = true
	}
	var unwanted []*checkpoint
	for id, c := range p.checkpoints {
		if !wanted[id] && c.users == 0 && c.refused == nil {
			delete(p.checkpoints, id)
			p.removing[id] = true
			unwanted = append(unwanted, c)
		}
	}
	p.mu.Unlock()
	var errs []error
	for _, c := range unwanted {
		errs = append(errs, removeCheckpoint(c.dir))
		p.mu.Lock()
		delete(p.removing, c.ID)
		p.mu.Unlock()
		p.step("checkpoint: removed")
	}
	return errors.Join(errs...)
}

// removeCheckpoint takes the name first, so that what is half removed is not
// taken for a damaged checkpoint.
func removeCheckpoint(dir string) error {
	doomed := dir
	if !strings.HasPrefix(filepath.Base(dir), unfinished) {
		doomed = filepath.Join(filepath.Dir(dir), unfinished+filepath.Base(dir))
		if err := os.Rename(dir, doomed); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return os.RemoveAll(doomed)
}
