package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// finding is something that nobody owns.
type finding struct {
	line   string
	remove func(ctx context.Context) error
}

// findings looks for what is there and should not be. A machine that the pool
// knows of nothing of would have been one without a receipt, so what is looked
// for is on disk, and entries that could not be released.
func (p *Pool) findings() ([]finding, error) {
	var found []finding
	entriesRoot := filepath.Join(p.opts.State, entriesDir)
	ids, err := names(entriesRoot)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, id := range ids {
		if e := p.entries[id]; e == nil {
			dir := filepath.Join(entriesRoot, id)
			// It may have gone since the directory was read.
			if _, err := os.Lstat(dir); err != nil {
				continue
			}
			found = append(found, finding{
				line:   "entry " + id + ": on disk, and not one of the pool's",
				remove: func(ctx context.Context) error { return p.recoverEntry(ctx, filepath.Base(dir)) },
			})
		} else if e.State == stateDoomed && !e.releasing {
			found = append(found, finding{
				line:   "entry " + id + ": could not be released",
				remove: func(ctx context.Context) error { return p.discard(ctx, e) },
			})
		}
	}
	root := filepath.Join(p.opts.Root, checkpointsDir)
	checkpoints, err := names(root)
	if err != nil {
		return nil, err
	}
	for _, id := range checkpoints {
		dir := filepath.Join(root, id)
		why := ""
		switch c := p.checkpoints[id]; {
		case p.savingNow(id), p.removing[strings.TrimPrefix(id, unfinished)]:
		case strings.HasPrefix(id, unfinished):
			why = "was never finished"
		case c == nil:
			why = "cannot be used"
		case c.refused != nil:
			why = c.refused.Error()
		}
		if why == "" {
			continue
		}
		// It may have gone since the directory was read.
		if _, err := os.Lstat(dir); err != nil {
			continue
		}
		found = append(found, finding{
			line:   fmt.Sprintf("checkpoint %s: %s", id, why),
			remove: func(context.Context) error { return p.forgetCheckpoint(id, dir) },
		})
	}
	return found, nil
}

// savingNow says whether the unfinished checkpoint is being made. The caller
// holds mu.
func (p *Pool) savingNow(id string) bool {
	for name, s := range p.templates {
		if s.saving && strings.HasPrefix(id, unfinished+name+".") {
			return true
		}
	}
	return false
}

func (p *Pool) forgetCheckpoint(id, dir string) error {
	p.mu.Lock()
	for _, s := range p.templates {
		if s.cold != nil && s.cold.ID == id {
			s.cold = nil
		}
	}
	delete(p.checkpoints, id)
	p.mu.Unlock()
	return removeCheckpoint(dir)
}

// Check lists what nobody owns, a line each, and changes nothing.
func (p *Pool) Check() ([]string, error) {
	found, err := p.findings()
	if err != nil {
		return nil, fmt.Errorf("check: %w", err)
	}
	var lines []string
	for _, f := range found {
		lines = append(lines, f.line)
	}
	slices.Sort(lines)
	return lines, nil
}

// GC removes what Check lists, and lists what it has removed.
func (p *Pool) GC(ctx context.Context) ([]string, error) {
	found, err := p.findings()
	if err != nil {
		return nil, fmt.Errorf("gc: %w", err)
	}
	var lines []string
	var errs []error
	for _, f := range found {
		if err := f.remove(ctx); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("%s: %w", f.line, err))
			continue
		}
		lines = append(lines, f.line)
	}
	slices.Sort(lines)
	errs = append(errs, p.removeCheckpoints())
	return lines, errors.Join(errs...)
}
