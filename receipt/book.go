// Package receipt keeps the durable record of what a sandbox has taken from
// the host, so that it can be given back by whoever comes after: the same
// process on its way out, `delete` after the process was killed, or a
// reconciler after a restart.
//
// The rule is: a receipt is on disk before its resource is acquired, and is
// struck out after the resource has been released. So a book may name things
// that were never acquired, and Undo must succeed for those; it never misses
// one that was.
package receipt

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"sync"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/durable"
)

// Resource is something of the host's that a sandbox holds. Implementations
// are plain structs whose exported fields are all that Undo needs; they are
// stored as JSON and registered by kind (see Register).
type Resource interface {
	// Kind names the type in the book.
	Kind() string
	// Undo releases the resource. It succeeds where there is nothing to
	// release, and never touches anything that merely looks alike: a process is
	// compared by start time, not by pid alone.
	Undo(ctx context.Context) error
}

var kinds = map[string]func() Resource{}

// Register makes a kind of resource readable from a book. zero returns a
// pointer to a new value. It is called from init functions only.
func Register(kind string, zero func() Resource) {
	if _, dup := kinds[kind]; dup {
		panic("receipt: kind " + kind + " registered twice")
	}
	kinds[kind] = zero
}

// Book is one sandbox's receipts in one file. It is safe for concurrent use by
// one process; two processes must not have the same book open.
type Book struct {
	path string

	mu      sync.Mutex
	next    uint64
	entries []entry
}

type entry struct {
	Seq      uint64          `json:"seq"`
	Kind     string          `json:"kind"`
	Resource json.RawMessage `json:"resource"`
}

// Open reads the book at path, or starts an empty one if there is none. The
// file itself first appears with the first receipt.
func Open(path string) (*Book, error) {
	b := &Book{path: path, next: 1}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return b, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open receipts: %w", err)
	}
	if err := json.Unmarshal(data, &b.entries); err != nil {
		return nil, fmt.Errorf("receipts %s: %w", path, err)
	}
	for _, e := range b.entries {
		b.next = max(b.next, e.Seq+1)
	}
	return b, nil
}

// Receipt is one line of a book.
type Receipt struct {
	book *Book
	seq  uint64
}

// Write records that r is about to be acquired. When it returns without error
// the record is on disk.
func (b *Book) Write(r Resource) (*Receipt, error) {
	data, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("receipt for %s: %w", r.Kind(), err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	e := entry{Seq: b.next, Kind: r.Kind(), Resource: data}
	if err := b.save(append(slices.Clone(b.entries), e)); err != nil {
		return nil, fmt.Errorf("receipt for %s: %w", r.Kind(), err)
	}
	b.next++
	return &Receipt{book: b, seq: e.Seq}, nil
}

// Amend replaces what the receipt says of its resource, once more is known:
// the pid of a process that has been started.
func (r *Receipt) Amend(res Resource) error {
	data, err := json.Marshal(res)
	if err != nil {
		return fmt.Errorf("amend receipt for %s: %w", res.Kind(), err)
	}
	b := r.book
	b.mu.Lock()
	defer b.mu.Unlock()
	entries := slices.Clone(b.entries)
	i := slices.IndexFunc(entries, func(e entry) bool { return e.Seq == r.seq })
	if i < 0 {
		return fmt.Errorf("amend receipt for %s: already struck out", res.Kind())
	}
	entries[i].Kind, entries[i].Resource = res.Kind(), data
	if err := b.save(entries); err != nil {
		return fmt.Errorf("amend receipt for %s: %w", res.Kind(), err)
	}
	return nil
}

// Strike removes the receipt after its resource has been released. Striking
// twice is legal.
func (r *Receipt) Strike() error {
	b := r.book
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.strike(r.seq)
}

// Undo releases the receipt's resource and strikes the receipt out. Undoing
// what has been struck out does nothing.
func (r *Receipt) Undo(ctx context.Context) error {
	b := r.book
	b.mu.Lock()
	i := slices.IndexFunc(b.entries, func(e entry) bool { return e.Seq == r.seq })
	var e entry
	if i >= 0 {
		e = b.entries[i]
	}
	b.mu.Unlock()
	if i < 0 {
		return nil
	}
	if err := undo(ctx, e); err != nil {
		return err
	}
	return r.Strike()
}

func (b *Book) strike(seq uint64) error {
	entries := slices.DeleteFunc(slices.Clone(b.entries), func(e entry) bool { return e.Seq == seq })
	if len(entries) == len(b.entries) {
		return nil
	}
	return b.save(entries)
}

// Len is the number of receipts in the book.
func (b *Book) Len() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.entries)
}

// UndoAll releases everything in the book, the newest first, and strikes out
// what was released. It goes on after a failure, so that one stuck resource
// does not keep the others; what failed stays in the book and is in the error.
func (b *Book) UndoAll(ctx context.Context) error {
	b.mu.Lock()
	entries := slices.Clone(b.entries)
	b.mu.Unlock()

	var errs []error
	for _, e := range slices.Backward(entries) {
		if err := undo(ctx, e); err != nil {
			errs = append(errs, err)
			continue
		}
		b.mu.Lock()
		err := b.strike(e.Seq)
		b.mu.Unlock()
		if err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func undo(ctx context.Context, e entry) error {
	zero, ok := kinds[e.Kind]
	if !ok {
		return fmt.Errorf("receipt %d: unknown kind %q", e.Seq, e.Kind)
	}
	r := zero()
	if err := json.Unmarshal(e.Resource, r); err != nil {
		return fmt.Errorf("receipt %d (%s): %w", e.Seq, e.Kind, err)
	}
	if err := r.Undo(ctx); err != nil {
		return fmt.Errorf("undo %s %s: %w", e.Kind, e.Resource, err)
	}
	return nil
}

// save writes entries to the book's file, and then makes them the book's.
func (b *Book) save(entries []entry) error {
	if err := durable.WriteJSON(b.path, entries); err != nil {
		return err
	}
	b.entries = entries
	return nil
}
