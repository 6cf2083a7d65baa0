package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/durable"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/proc"
	poolv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/pool/api/v1"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"
)

// state is where an entry is in its life, see the package's documentation.
type state string

const (
	stateMaking  state = "making"
	stateHot     state = "hot"
	stateOffered state = "offered"
	stateGiven   state = "given"
	// stateDoomed is in memory only: the entry is being destroyed, or that has
	// failed and is tried again. On disk it is what it was before.
	stateDoomed state = "doomed"
)

// record is what of an entry is on disk.
type record struct {
	ID       string `json:"id"`
	Template string `json:"template"`
	// Shape is poolv1.Shape.Key of the machine, whatever becomes of the template.
	Shape string `json:"shape"`
	State state  `json:"state"`
	// Tier is where the machine came from: cold or boot.
	Tier poolv1.Tier `json:"tier"`
	// Checkpoint is the one that it was restored from, if it was.
	Checkpoint string `json:"checkpoint,omitempty"`
	// Machine is set from hot on.
	Machine *hypervisor.Record `json:"machine,omitempty"`
	// Book is which of the receipt books is the valid one.
	Book int `json:"book"`
	// Claimant is to whom it is offered or was given.
	Claimant proc.ID   `json:"claimant,omitzero"`
	Ready    time.Time `json:"ready,omitzero"`
	Offered  time.Time `json:"offered,omitzero"`
}

// entry is one machine of the pool's. Its record and place in lists are guarded
// by Pool.mu; the rest is set while a single goroutine knows of it.
type entry struct {
	record
	dir     string
	book    *receipt.Book
	machine hypervisor.Machine // nil if it was not adopted after a restart
	// settled is closed when an offer has been confirmed or taken back.
	settled chan struct{}
	// parked is false for a machine that is offered straight from its making.
	parked bool
	// releasing is true while discard is at work. It is guarded by Pool.mu.
	releasing bool
}

const (
	entryName = "entry.json"
	// bookPrefix begins the names of receipt books.
	bookPrefix = "receipts-"
)

func (e *entry) bookPath(n int) string {
	return filepath.Join(e.dir, bookPrefix+strconv.Itoa(n))
}

func (e *entry) machineDir() string { return filepath.Join(e.dir, "machine") }

// save writes r to disk as the entry's record. The caller makes it the entry's.
func (e *entry) save(r record) error {
	if err := durable.WriteJSON(filepath.Join(e.dir, entryName), r); err != nil {
		return fmt.Errorf("record of entry %s: %w", r.ID, err)
	}
	return nil
}

// newEntry makes an entry on disk, with no machine yet.
func (p *Pool) newEntry(t Template, cp *checkpoint) (*entry, error) {
	id := p.newID(t.Name)
	e := &entry{
		record:  record{ID: id, Template: t.Name, Shape: t.Shape().Key(), State: stateMaking, Tier: tierOf(cp), Book: 1},
		dir:     filepath.Join(p.opts.State, entriesDir, id),
		settled: make(chan struct{}),
	}
	if cp != nil {
		e.Checkpoint = cp.ID
	}
	// Known before it is on disk: what is there and not known is a leak.
	p.mu.Lock()
	p.entries[id] = e
	p.mu.Unlock()
	err := os.MkdirAll(e.machineDir(), 0o700)
	if err == nil {
		p.step("make: directory")
		err = e.save(e.record)
	}
	if err == nil {
		e.book, err = receipt.Open(e.bookPath(e.Book))
	}
	if err != nil {
		err = errors.Join(err, os.RemoveAll(e.dir))
		p.mu.Lock()
		delete(p.entries, id)
		p.mu.Unlock()
		return nil, fmt.Errorf("entry %s: %w", id, err)
	}
	p.step("make: record")
	return e, nil
}

// release gives back everything that the entry has of the host's, and forgets
// it. What cannot be given back stays on disk, for another attempt.
func (p *Pool) release(ctx context.Context, e *entry) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTimeout)
	defer cancel()
	p.step("destroy: begin")
	var err error
	if e.machine != nil {
		err = e.machine.Destroy(ctx)
	}
	p.step("destroy: machine")
	// Without a machine these are all there is to go by; with one, what it does
	// not know of.
	if err == nil {
		err = e.book.UndoAll(ctx)
	}
	p.step("destroy: receipts")
	if err == nil {
		err = e.remove()
	}
	if err != nil {
		return fmt.Errorf("release entry %s: %w", e.ID, err)
	}
	p.step("destroy: removed")
	return nil
}

// remove removes the entry from disk, the record last: without it, a directory
// is what a newEntry that did not come far has left.
func (e *entry) remove() error {
	left, err := names(e.dir)
	if err != nil {
		return err
	}
	for _, name := range left {
		if name == entryName {
			continue
		}
		if err := os.RemoveAll(filepath.Join(e.dir, name)); err != nil {
			return err
		}
	}
	return os.RemoveAll(e.dir)
}
