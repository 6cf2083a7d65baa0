package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"
)

// recoverConcurrency is how many machines are taken up at the same time.
const recoverConcurrency = 8

// recover reads what is on disk, takes up what lives and undoes what does not.
// What is wrong with one template, checkpoint or entry keeps no other.
func (p *Pool) recover(ctx context.Context) error {
	if err := p.loadTemplates(ctx); err != nil {
		return err
	}
	if err := p.loadCheckpoints(ctx); err != nil {
		return err
	}
	root := filepath.Join(p.opts.State, entriesDir)
	ids, err := names(root)
	if err != nil {
		return fmt.Errorf("pool: %w", err)
	}
	var wg sync.WaitGroup
	slots := make(chan struct{}, recoverConcurrency)
	for _, id := range ids {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			if err := p.recoverEntry(ctx, id); err != nil {
				log.G(ctx).WithError(err).WithField("entry", id).Error("an entry could not be taken up")
			}
		})
	}
	wg.Wait()
	if err := p.removeUnfinished(); err != nil {
		return fmt.Errorf("pool: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.templates {
		slices.SortFunc(s.hot, func(a, b *entry) int { return a.Ready.Compare(b.Ready) })
	}
	if n := len(p.entries); n > 0 {
		log.G(ctx).Infof("%d machines of a former daemon were taken up", n)
	}
	return nil
}

func (p *Pool) loadTemplates(ctx context.Context) error {
	dir := filepath.Join(p.opts.Root, templatesDir)
	files, err := names(dir)
	if err != nil {
		return fmt.Errorf("pool: %w", err)
	}
	for _, file := range files {
		name, isTemplate := strings.CutSuffix(file, jsonSuffix)
		if !isTemplate {
			continue
		}
		var t Template
		err := readJSON(filepath.Join(dir, file), &t)
		if err == nil {
			err = t.Validate(p.caps)
		}
		if err == nil && t.Name != name {
			err = fmt.Errorf("it is in the file of %q", name)
		}
		if err != nil {
			log.G(ctx).WithError(err).WithField("template", name).Error("a template is not used")
			continue
		}
		p.setTemplate(t)
	}
	return nil
}

// loadCheckpoints gives each template the newest checkpoint that fits. One that
// is refused is shown with its reason and left where it is.
func (p *Pool) loadCheckpoints(ctx context.Context) error {
	dir := filepath.Join(p.opts.Root, checkpointsDir)
	ids, err := names(dir)
	if err != nil {
		return fmt.Errorf("pool: %w", err)
	}
	for _, id := range ids {
		if strings.HasPrefix(id, unfinished) {
			continue // see removeUnfinished: its machine may still be there
		}
		c, err := openCheckpoint(filepath.Join(dir, id), p.opts.Backend.Name())
		if err != nil {
			log.G(ctx).WithError(err).Error("a checkpoint is not used")
			if i := strings.LastIndexByte(id, '.'); i > 0 && p.templates[id[:i]] != nil {
				p.templates[id[:i]].refused = err
			}
			continue
		}
		p.checkpoints[id] = c
		s := p.templates[c.Template.Name]
		if s == nil || !s.Cold || !sameMachines(s.Template, c.Template) {
			continue
		}
		if s.cold == nil || s.cold.Made.Before(c.Made) {
			s.cold = c
		}
	}
	return nil
}

// removeUnfinished removes what is left of checkpoints that were being made, or
// removed, when the daemon ended. Their machines are gone by now.
func (p *Pool) removeUnfinished() error {
	dir := filepath.Join(p.opts.Root, checkpointsDir)
	ids, err := names(dir)
	if err != nil {
		return err
	}
	for _, id := range ids {
		if strings.HasPrefix(id, unfinished) {
			if err := removeCheckpoint(filepath.Join(dir, id)); err != nil {
				return err
			}
		}
	}
	return nil
}

// recoverEntry goes on from wherever the former daemon was.
func (p *Pool) recoverEntry(ctx context.Context, id string) error {
	e := &entry{dir: filepath.Join(p.opts.State, entriesDir, id), settled: make(chan struct{})}
	if err := readJSON(filepath.Join(e.dir, entryName), &e.record); err != nil {
		if !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return p.recoverNoRecord(ctx, e.dir)
	}
	if e.ID != id || e.Machine == nil && e.State != stateMaking {
		return fmt.Errorf("it is the record of %q, which is %s", e.ID, e.State)
	}
	var err error
	if e.book, err = receipt.Open(e.bookPath(e.Book)); err != nil {
		return err
	}
	p.mu.Lock()
	p.entries[id] = e
	p.mu.Unlock()
	switch e.State {
	case stateHot:
		if err = p.recoverHot(ctx, e); err == nil {
			return nil
		}
	case stateOffered:
		p.recoverOffered(ctx, e)
		return nil
	case stateGiven:
		// Perhaps before it was let go.
		err = removeFile(e.bookPath(e.Book))
		p.work.Go(func() { p.watchGiven(e) })
		return err
	}
	p.doom(ctx, e)
	return err
}

// recoverNoRecord removes an entry without a record. Before the record nothing is
// taken, and after its removal nothing is left; but somebody else may have removed
// it. A machine of somebody else's has no receipts here.
func (p *Pool) recoverNoRecord(ctx context.Context, dir string) error {
	ctx, cancel := context.WithTimeout(ctx, releaseTimeout)
	defer cancel()
	left, err := names(dir)
	if err != nil {
		return err
	}
	for _, name := range left {
		if !strings.HasPrefix(name, bookPrefix) {
			continue
		}
		book, err := receipt.Open(filepath.Join(dir, name))
		if err == nil {
			err = book.UndoAll(ctx)
		}
		if err != nil {
			return fmt.Errorf("an entry without a record: %w", err)
		}
	}
	return os.RemoveAll(dir)
}

// recoverOffered leaves the offer to its claimant, which may be about to confirm
// it. The machine is not adopted for that: the claimant does, or its receipts
// are undone.
func (p *Pool) recoverOffered(ctx context.Context, e *entry) {
	alive, err := e.Claimant.Alive()
	// Destroyed, if it is gone, by a claimant whose confirmation failed.
	there, merr := e.Machine.Process.Alive()
	if err = errors.Join(err, merr); err != nil {
		log.G(ctx).WithError(err).WithField("entry", e.ID).Warn("the claimant has the rest of its time: nobody knows whether it lives")
		alive, there = true, true
	}
	left := p.opts.ClaimTimeout - time.Since(e.Offered)
	if !alive || !there || left <= 0 {
		p.doom(ctx, e)
		return
	}
	p.work.Go(func() { p.watchOffer(e, min(left, p.opts.ClaimTimeout)) })
}

// recoverHot adopts a parked machine. The receipts of the adoption are in a book
// of their own, which becomes the valid one with the record that names it. After
// an error the machine is of no use.
func (p *Pool) recoverHot(ctx context.Context, e *entry) error {
	ctx, cancel := context.WithTimeout(ctx, releaseTimeout)
	defer cancel()
	p.mu.Lock()
	s := p.templates[e.Template]
	fits := s != nil && s.Shape().Key() == e.Shape && e.Machine != nil
	p.mu.Unlock()
	if !fits {
		p.doom(ctx, e)
		return nil
	}
	r := e.record
	r.Book++
	if err := removeFile(e.bookPath(r.Book)); err != nil {
		return err
	}
	book, err := receipt.Open(e.bookPath(r.Book))
	if err != nil {
		return err
	}
	m, err := p.opts.Backend.(hypervisor.Adopter).Adopt(ctx, *r.Machine, book)
	if err != nil {
		// It is not there any more, or not as it was: what is left goes.
		if !errdefs.IsNotFound(err) {
			log.G(ctx).WithError(err).WithField("entry", e.ID).Warn("a hot machine could not be adopted")
		}
		p.doom(ctx, e)
		return nil
	}
	p.step("recover: adopted")
	if e.machine, err = m, e.save(r); err != nil {
		return err
	}
	p.step("recover: record")
	old := e.bookPath(e.Book)
	e.record, e.book, e.parked = r, book, true
	if err := removeFile(old); err != nil {
		return err
	}
	parker, ok := m.(hypervisor.Parker)
	if !ok {
		return fmt.Errorf("park machine %s: %w", e.ID, errdefs.ErrNotImplemented)
	}
	// Proof, and it stops one that somebody has continued.
	if err := parker.Park(ctx); err != nil {
		log.G(ctx).WithError(err).WithField("entry", e.ID).Warn("a hot machine could not be parked again")
		p.doom(ctx, e)
		return nil
	}
	p.mu.Lock()
	s.hot = append(s.hot, e)
	p.mu.Unlock()
	done := m.Done()
	p.work.Go(func() { p.guard(s, e, done) })
	return nil
}
