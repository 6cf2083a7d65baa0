package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"github.com/containerd/errdefs"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/pf"
)

// pipeDir has a symbolic link for each pair of dummynet's pipes, to the sandbox that
// has it, as portDir has for ports: pipes have no name that would say whose they are.
// It is there before the pipes, and goes after them.
const pipeDir = ".pipes"

// firstPipe begins the numbers that are used; there are two for each unit of taps,
// and so for each sandbox that a host has room for.
const firstPipe = 40000

func (s store) pipes() string         { return filepath.Join(filepath.Dir(s.dir), pipeDir) }
func (s store) pipe(p pf.Pipe) string { return filepath.Join(s.pipes(), fmt.Sprint(p)) }

// limit makes the sandbox's bandwidth so many bytes a second, 0 for any, but for the
// lines by which frames find its pipes: those are the record's, for dispatch, and
// pipes that are in none then are for freePipes.
func (h *freebsd) limit(ctx context.Context, r *record, rate uint64) error {
	if rate == 0 {
		return h.setPipe(r, 0)
	}
	p := r.Pipe
	if p == 0 {
		var err error
		if p, err = h.takePipe(ctx, r); err != nil {
			return err
		}
	}
	if err := h.pf.SetPipe(ctx, p, rate); err != nil {
		return errors.Join(err, h.freeUnused(ctx, r))
	}
	return h.setPipe(r, p)
}

// setPipe writes down the pipes that the sandbox's frames are to go through. They are
// there: lines are made from the record by whoever makes some.
func (h *freebsd) setPipe(r *record, p pf.Pipe) error {
	if r.Pipe == p {
		return nil
	}
	r.Pipe = p
	return h.store.save(r)
}

// takePipe gives the sandbox a pair of numbers that nobody has: no other sandbox, and
// nobody else whose pipes are there. errdefs.ErrUnavailable if all are taken.
func (h *freebsd) takePipe(ctx context.Context, r *record) (pf.Pipe, error) {
	if err := os.MkdirAll(h.store.pipes(), 0o700); err != nil {
		return 0, fmt.Errorf("network: state: %w", err)
	}
	start := number(r.Address) - number(h.cfg.First)
	for i := range uint32(units) {
		p := pf.Pipe(firstPipe + 2*((start+i)%units))
		path := h.store.pipe(p)
		if err := os.Symlink(h.store.claimant(r.ID), path); errors.Is(err, fs.ErrExist) {
			if owner, err := os.Readlink(path); err == nil && owner == h.store.claimant(r.ID) {
				// Of one that was killed.
				return p, nil
			}
			continue
		} else if err != nil {
			return 0, fmt.Errorf("pipe %d: %w", p, err)
		}
		foreign, err := h.pf.HasPipe(ctx, p)
		if err == nil && !foreign {
			return p, nil
		}
		if err = errors.Join(err, os.Remove(path)); err != nil {
			return 0, err
		}
	}
	return 0, fmt.Errorf("all pipes of dummynet(4) from %d to %d are taken: %w", firstPipe, firstPipe+2*units-1, errdefs.ErrUnavailable)
}

// freePipes removes pipes of this network's but for those to keep, and names them.
func (h *freebsd) freePipes(ctx context.Context, keep func(owner string, p pf.Pipe) bool) (removed []string, err error) {
	entries, err := os.ReadDir(h.store.pipes())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("network: state: %w", err)
	}
	var errs []error
	for _, e := range entries {
		n, err := strconv.ParseUint(e.Name(), 10, 16)
		if err != nil {
			continue
		}
		p := pf.Pipe(n)
		if owner, err := os.Readlink(h.store.pipe(p)); err != nil || filepath.Dir(owner) != filepath.Base(h.store.dir) || keep(filepath.Base(owner), p) {
			continue
		}
		if err := h.pf.DeletePipe(ctx, p); err != nil {
			errs = append(errs, err)
			continue
		}
		if err := os.Remove(h.store.pipe(p)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
		removed = append(removed, fmt.Sprintf("pipes %d and %d", p, p+1))
	}
	return removed, errors.Join(errs...)
}

// freeUnused removes the sandbox's pipes that its record does not name.
func (h *freebsd) freeUnused(ctx context.Context, r *record) error {
	_, err := h.freePipes(ctx, func(owner string, p pf.Pipe) bool { return owner != r.ID || p == r.Pipe })
	return err
}
