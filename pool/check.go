package pool

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
)

// Kinds of findings.
const (
	kindMachine    = "machine"
	kindEntry      = "entry"
	kindCheckpoint = "checkpoint"
)

// Finding is something that nobody owns.
type Finding struct {
	// Kind is "machine", "entry" or "checkpoint", Name the entry's or the
	// checkpoint's; a machine's is that of the entry that it was.
	Kind, Name string
	// Why is what is the matter with it.
	Why string

	remove func(ctx context.Context) error
}

func (f Finding) String() string { return f.Kind + " " + f.Name + ": " + f.Why }

// findings looks for what is there and should not be: on disk, among entries that
// could not be released, and among the machines of the host.
func (p *Pool) findings(ctx context.Context) ([]Finding, error) {
	machines, err := p.strays(ctx)
	if err != nil {
		return nil, err
	}
	root := filepath.Join(p.opts.State, entriesDir)
	ids, err := names(root)
	if err != nil {
		return nil, err
	}
	checkpoints, err := names(filepath.Join(p.opts.Root, checkpointsDir))
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	found := slices.Concat(p.lostMachines(machines), p.lostEntries(root, ids), p.lostCheckpoints(checkpoints))
	slices.SortFunc(found, func(a, b Finding) int { return strings.Compare(a.String(), b.String()) })
	return found, nil
}

// strays are machines that no process attends to and of which the pool knew
// nothing when it began to look: one that it destroys meanwhile is not among them.
func (p *Pool) strays(ctx context.Context) ([]hypervisor.Stray, error) {
	backend, ok := p.opts.Backend.(hypervisor.Searcher)
	if !ok {
		return nil, nil
	}
	p.mu.Lock()
	entries := maps.Clone(p.entries)
	p.mu.Unlock()
	root := filepath.Join(p.opts.State, entriesDir)
	all, err := backend.Strays(ctx, root, func(dir string) bool { return entries[entryOf(root, dir)] != nil })
	if err != nil {
		return nil, err
	}
	for i := range all {
		if all[i].Dir != "" {
			all[i].ID = entryOf(root, all[i].Dir)
		}
	}
	return slices.DeleteFunc(all, func(s hypervisor.Stray) bool { return entries[s.ID] != nil }), nil
}

// entryOf is the entry of a machine in a directory below root.
func entryOf(root, dir string) string {
	id, _, _ := strings.Cut(strings.TrimPrefix(dir, root+string(filepath.Separator)), string(filepath.Separator))
	return id
}

// lostMachines are those of strays of which the pool knows nothing: somebody else
// has removed their records. What it knows of it releases by itself, or it is a
// claimant's. The caller holds mu.
func (p *Pool) lostMachines(strays []hypervisor.Stray) (found []Finding) {
	for _, s := range strays {
		if p.entries[s.ID] != nil {
			continue
		}
		why := fmt.Sprintf("process %d runs it, and there is no record of it", s.Process.Pid)
		if s.Process.Pid == 0 {
			why = "a virtual machine that no process runs"
		}
		found = append(found, Finding{Kind: kindMachine, Name: s.ID, Why: why, remove: s.Destroy})
	}
	return found
}

// lostEntries are those on disk that are not the pool's, or that it could not
// release. The caller holds mu.
func (p *Pool) lostEntries(root string, ids []string) (found []Finding) {
	for _, id := range ids {
		e := p.entries[id]
		switch {
		case e == nil:
			// It may have gone since the directory was read.
			if _, err := os.Lstat(filepath.Join(root, id)); err != nil {
				continue
			}
			found = append(found, Finding{
				Kind: kindEntry, Name: id, Why: "on disk, and not one of the pool's",
				remove: func(ctx context.Context) error { return p.recoverEntry(ctx, id) },
			})
		case e.State == stateDoomed && !e.releasing:
			found = append(found, Finding{
				Kind: kindEntry, Name: id, Why: "could not be released",
				remove: func(ctx context.Context) error { return p.discard(ctx, e) },
			})
		}
	}
	return found
}

// lostCheckpoints are those of ids that were not finished, or cannot be used. The
// caller holds mu.
func (p *Pool) lostCheckpoints(ids []string) (found []Finding) {
	for _, id := range ids {
		dir := filepath.Join(p.opts.Root, checkpointsDir, id)
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
		found = append(found, Finding{
			Kind: kindCheckpoint, Name: id, Why: why,
			remove: func(context.Context) error { return p.forgetCheckpoint(id, dir) },
		})
	}
	return found
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

// Check lists what nobody owns, and changes nothing.
func (p *Pool) Check(ctx context.Context) ([]Finding, error) {
	found, err := p.findings(ctx)
	if err != nil {
		return nil, fmt.Errorf("check: %w", err)
	}
	return found, nil
}

// GC removes what Check lists, and lists what it has removed.
func (p *Pool) GC(ctx context.Context) ([]Finding, error) {
	found, err := p.findings(ctx)
	if err != nil {
		return nil, fmt.Errorf("gc: %w", err)
	}
	var gone []Finding
	var errs []error
	for _, f := range found {
		if err := f.remove(ctx); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("%s: %w", f, err))
			continue
		}
		gone = append(gone, f)
	}
	errs = append(errs, p.removeCheckpoints())
	return gone, errors.Join(errs...)
}
