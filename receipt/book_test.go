package receipt

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

const testKind = "test"

// thing is a resource that tells undone of its end.
type thing struct {
	Name string `json:"name"`
}

var (
	undone  []string
	stuck   = map[string]bool{}
	errHeld = errors.New("held")
)

func init() { Register(testKind, func() Resource { return new(thing) }) }

func (*thing) Kind() string { return testKind }

func (r *thing) Undo(context.Context) error {
	if stuck[r.Name] {
		return errHeld
	}
	undone = append(undone, r.Name)
	return nil
}

func reset(t *testing.T) {
	undone = nil
	clear(stuck)
	t.Cleanup(func() { undone = nil; clear(stuck) })
}

func open(t *testing.T, path string) *Book {
	t.Helper()
	b, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func write(t *testing.T, b *Book, names ...string) (receipts []*Receipt) {
	t.Helper()
	for _, n := range names {
		r, err := b.Write(&thing{n})
		if err != nil {
			t.Fatal(err)
		}
		receipts = append(receipts, r)
	}
	return receipts
}

func wantUndone(t *testing.T, want ...string) {
	t.Helper()
	if !slices.Equal(undone, want) {
		t.Errorf("undone: %q, want %q", undone, want)
	}
}

func TestUndoAllIsNewestFirstAndGoesOnAfterAFailure(t *testing.T) {
	reset(t)
	path := filepath.Join(t.TempDir(), "book")
	write(t, open(t, path), "a", "b", "c", "d")
	stuck["c"] = true

	b := open(t, path)
	err := b.UndoAll(t.Context())
	if !errors.Is(err, errHeld) || !strings.Contains(err.Error(), `"c"`) {
		t.Errorf("got %v, want the failure of c", err)
	}
	wantUndone(t, "d", "b", "a")

	// What failed is there for the next attempt, and nothing else is.
	stuck["c"] = false
	b = open(t, path)
	if b.Len() != 1 {
		t.Fatalf("%d receipts left, want 1", b.Len())
	}
	if err := b.UndoAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantUndone(t, "d", "b", "a", "c")
	if b := open(t, path); b.Len() != 0 {
		t.Errorf("%d receipts left", b.Len())
	}
}

func TestUnknownKindStaysAndKeepsNothingElse(t *testing.T) {
	reset(t)
	path := filepath.Join(t.TempDir(), "book")
	// As written by a newer version of the program.
	entries := []entry{
		{Seq: 1, Kind: testKind, Resource: json.RawMessage(`{"name":"a"}`)},
		{Seq: 2, Kind: "from the future", Resource: json.RawMessage(`{}`)},
		{Seq: 3, Kind: testKind, Resource: json.RawMessage(`{"name":7}`)},
	}
	data, err := json.Marshal(entries)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	b := open(t, path)
	err = b.UndoAll(t.Context())
	if err == nil || !strings.Contains(err.Error(), "from the future") || !strings.Contains(err.Error(), "receipt 3") {
		t.Errorf("got %v, want both receipts that cannot be read", err)
	}
	wantUndone(t, "a")
	if b := open(t, path); b.Len() != 2 {
		t.Errorf("%d receipts left, want the 2 that cannot be read", b.Len())
	}
}

func TestReceiptIsOnDiskWhenWriteReturns(t *testing.T) {
	reset(t)
	path := filepath.Join(t.TempDir(), "book")
	b := open(t, path)
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file is there before the first receipt: %v", err)
	}
	r := write(t, b, "a", "b")
	if n := open(t, path).Len(); n != 2 {
		t.Errorf("%d receipts on disk, want 2", n)
	}
	if err := r[0].Amend(&thing{"amended"}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := r[1].Strike(); err != nil {
			t.Fatal(err)
		}
	}
	if err := r[1].Amend(&thing{"x"}); err == nil {
		t.Error("amended what was struck out")
	}
	// A receipt written after a restart is not mistaken for an earlier one.
	again := open(t, path)
	late := write(t, again, "late")[0]
	if late.seq <= r[0].seq {
		t.Errorf("sequence number %d again after %d", late.seq, r[0].seq)
	}
	if err := again.UndoAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantUndone(t, "late", "amended")
}

func TestReceiptUndo(t *testing.T) {
	reset(t)
	path := filepath.Join(t.TempDir(), "book")
	b := open(t, path)
	r := write(t, b, "a", "b")
	stuck["a"] = true
	if err := r[0].Undo(t.Context()); !errors.Is(err, errHeld) {
		t.Errorf("got %v, want the failure", err)
	}
	if n := open(t, path).Len(); n != 2 {
		t.Errorf("%d receipts after a failure, want 2", n)
	}
	stuck["a"] = false
	for range 2 {
		if err := r[0].Undo(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	wantUndone(t, "a")
	if n := open(t, path).Len(); n != 1 {
		t.Errorf("%d receipts left, want 1", n)
	}
}

// A save that fails halfway, at whatever point, leaves the book as it was, on
// disk and in memory, and no files beside it.
func TestFailedSaveChangesNothing(t *testing.T) {
	reset(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "book")
	b := open(t, path)
	r := write(t, b, "a")[0]

	// The book's own name is taken by something that rename cannot replace.
	aside := filepath.Join(dir, "aside")
	if err := os.Rename(path, aside); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(path, "in the way"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Write(&thing{"b"}); err == nil {
		t.Error("write succeeded")
	}
	if err := r.Amend(&thing{"x"}); err == nil {
		t.Error("amend succeeded")
	}
	if err := r.Strike(); err == nil {
		t.Error("strike succeeded")
	}
	if b.Len() != 1 {
		t.Errorf("%d receipts in memory, want 1", b.Len())
	}
	left, err := filepath.Glob(filepath.Join(dir, ".*"))
	if err != nil || len(left) != 0 {
		t.Errorf("left beside the book: %q, %v", left, err)
	}

	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(aside, path); err != nil {
		t.Fatal(err)
	}
	// The directory is gone altogether: the first step fails.
	gone := filepath.Join(dir, "none", "book")
	if _, err := open(t, gone).Write(&thing{"b"}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("write without a directory: %v", err)
	}
	write(t, b, "b")
	if err := open(t, path).UndoAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantUndone(t, "b", "a")
}

// What a crash in the middle of save leaves behind is not taken for the book.
func TestHalfWrittenFileIsIgnored(t *testing.T) {
	reset(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "book")
	write(t, open(t, path), "a")
	if err := os.WriteFile(filepath.Join(dir, ".book-1234"), []byte(`[{"seq":1,`), 0o600); err != nil {
		t.Fatal(err)
	}
	if n := open(t, path).Len(); n != 1 {
		t.Errorf("%d receipts, want 1", n)
	}
	if err := os.WriteFile(path, []byte(`[{"seq":1,`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("open a damaged book: %v, want an error that names it", err)
	}
}

func TestBookIsSafeForConcurrentUse(t *testing.T) {
	reset(t)
	path := filepath.Join(t.TempDir(), "book")
	b := open(t, path)
	const n = 8
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			keep, err := b.Write(&thing{fmt.Sprint("keep", i)})
			if err != nil {
				t.Error(err)
				return
			}
			drop, err := b.Write(&thing{"drop"})
			if err != nil {
				t.Error(err)
				return
			}
			if err := errors.Join(keep.Amend(&thing{fmt.Sprint("kept", i)}), drop.Strike()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if err := open(t, path).UndoAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	slices.Sort(undone)
	var want []string
	for i := range n {
		want = append(want, fmt.Sprint("kept", i))
	}
	wantUndone(t, want...)
}
