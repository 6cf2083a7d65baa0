package ninep

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

// handOver saves the session of from, by way of what it is on disk, and loads it
// into another tree of dir.
func handOver(t *testing.T, from *Tree, dir string, opts Options) (*Tree, error) {
	t.Helper()
	saved, err := from.Save()
	if err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(saved)
	if err != nil {
		t.Fatal(err)
	}
	again := &Saved{}
	if err := json.Unmarshal(data, again); err != nil {
		t.Fatal(err)
	}
	tree := serveAt(t, dir, Dir, opts)
	return tree, tree.Load(again)
}

func TestSavedSessionGoesOn(t *testing.T) {
	opts := Options{Exclusive: true}
	tree, dir := serveDir(t, opts)
	if err := os.MkdirAll(filepath.Join(dir, "a", "b"), 0o755); err != nil {
		t.Fatal(err)
	}
	writeFile(t, "0123456789", dir, "a", "b", "f")
	writeFile(t, "other", dir, "other")
	c := mount(t, tree)
	open, idle := c.open(c.walk(0, "a", "b", "f"), openReadWrite), c.walk(0, "a", "b", "f")
	listed := c.open(c.walk(0, "a"), openDirectory)
	made := c.create(c.walk(0, "a"), "made", openReadWrite|openTruncate|openExclusive, 0o644, 0)
	c.write(made, 0, "made")
	gone := c.walk(0, "other")
	c.ok(msgTunlinkat, uint32(0), "other", uint32(0))
	was := c.stat(open)

	// A copy of the files, elsewhere.
	copied := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a/b/f", "a/made"} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(filepath.Join(copied, name), info.ModTime(), info.ModTime()); err != nil {
			t.Fatal(err)
		}
	}
	for name, dir := range map[string]string{"same": dir, "copy": copied} {
		t.Run(name, func(t *testing.T) {
			next, err := handOver(t, tree, dir, opts)
			if err != nil {
				t.Fatal(err)
			}
			numbered := c.nextFid
			c := connect(t, next)
			c.nextFid = numbered
			if got := string(c.read(open, 2, 3)); got != "234" {
				t.Errorf("read %q of the open file", got)
			}
			if got := string(c.read(made, 0, 10)); got != "made" {
				t.Errorf("read %q of the file that was made", got)
			}
			if is := c.stat(open); is.qid != was.qid {
				t.Errorf("the file is %+v, and was %+v", is.qid, was.qid)
			}
			if is := c.stat(c.walk(0, "a", "b", "f")); is.qid != was.qid {
				t.Errorf("the file by its name is %+v, and was %+v", is.qid, was.qid)
			}
			if len(c.readdir(listed, 0, 4096)) != 4 {
				t.Error("the open directory has other entries")
			}
			c.open(idle, 0)
			c.want(linuxESTALE, msgTlopen, gone, uint32(0))
			c.create(c.walk(0), "new-"+name, openReadWrite, 0o644, 0)
			c.clunk(open)
		})
	}
	// Who was saved has noticed nothing.
	c.write(open, 0, "x")
}

func TestSaveRefuses(t *testing.T) {
	tree, dir := serveDir(t, Options{})
	if _, err := tree.Save(); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("without a session: %v", err)
	}
	c := mount(t, tree)
	refused := func(why string) {
		t.Helper()
		if _, err := tree.Save(); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), why) {
			t.Errorf("want a refusal because of %q: %v", why, err)
		}
	}
	writeFile(t, "x", dir, "f")
	fid := c.open(c.walk(0, "f"), openReadWrite)
	c.locking(fid, lockWrite, 0, 0, 1)
	refused("/f is locked")
	c.locking(fid, lockUnlock, 0, 0, 1)
	c.clunk(fid)

	fid = c.open(c.walk(0, "f"), openReadWrite)
	c.ok(msgTunlinkat, uint32(0), "f", uint32(0))
	refused("/f is open and has been removed")
	c.clunk(fid)

	writeFile(t, "x", dir, "g")
	fid = c.open(c.walk(0, "g"), openReadWrite)
	if err := os.Rename(filepath.Join(dir, "g"), filepath.Join(dir, "h")); err != nil {
		t.Fatal(err)
	}
	refused("/g is open")
	c.clunk(fid)
	if _, err := tree.Save(); err != nil {
		t.Error(err)
	}
}

// deepTree has a client make directories in each other and remove files that it
// goes on to refer to, so that none of the directories keeps its descriptor.
func deepTree(t *testing.T, depth int) *Tree {
	t.Helper()
	const pinned = 4
	tree, dir := serveDir(t, Options{MaxPinned: pinned})
	c := mount(t, tree)
	at := uint32(0)
	for range depth {
		c.ok(msgTmkdir, at, "d", uint32(0o755), uint32(0))
		at = c.walk(at, "d")
	}
	for i := range pinned {
		name := fmt.Sprint(i)
		writeFile(t, "", dir, name)
		c.walk(0, name)
		c.ok(msgTunlinkat, uint32(0), name, uint32(0))
	}
	return tree
}

// Files are found once, however deep they are.
func TestSaveOfADeepTree(t *testing.T) {
	const depth = 100
	tree := deepTree(t, depth)
	saved, err := tree.Save()
	if err != nil {
		t.Fatal(err)
	}
	there, deepest := 0, 0
	for i, n := range saved.Nodes {
		if n.Type == typeDir && !n.Gone {
			there++
		}
		deepest = max(deepest, strings.Count(saved.pathOf(i), "/"))
	}
	if there != depth+1 || deepest != depth-1 {
		t.Errorf("%d directories, the deepest with %d above it, want %d and %d", there, deepest, depth+1, depth-1)
	}

	defer func(most int) { maxDepth = most }(maxDepth)
	maxDepth = depth / 2
	if _, err := tree.Save(); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("of a way that is too long: %v", err)
	}
}

// A client makes paths as long as it likes; nobody reads that.
func TestPathInAnError(t *testing.T) {
	const depth = 5000
	saved := &Saved{Nodes: []SavedNode{{}}}
	for i := range depth {
		saved.Nodes = append(saved.Nodes, SavedNode{Parent: i, Name: strings.Repeat("x", maxName)})
	}
	if got := saved.pathOf(2); len(got) != 2*maxName+1 {
		t.Errorf("%d bytes of a path of two names", len(got))
	}
	if got := saved.pathOf(depth); len(got) > maxShown+2*maxName || !strings.HasPrefix(got, "…/x") {
		t.Errorf("%d bytes of a long path: %.20s", len(got), got)
	}
}

func TestLoadRefuses(t *testing.T) {
	opts := Options{Exclusive: true}
	for name, change := range map[string]func(t *testing.T, dir string){
		"is not there": func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, "f")); err != nil {
				t.Fatal(err)
			}
		},
		"has changed": func(t *testing.T, dir string) { writeFile(t, "more than there was", dir, "f") },
		"is of another type": func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, "f")); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink("/etc/passwd", filepath.Join(dir, "f")); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			tree, dir := serveDir(t, opts)
			writeFile(t, "x", dir, "f")
			c := mount(t, tree)
			c.open(c.walk(0, "f"), 0)
			saved, err := tree.Save()
			if err != nil {
				t.Fatal(err)
			}
			change(t, dir)
			if err := serveAt(t, dir, Dir, opts).Load(saved); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "/f "+name) {
				t.Errorf("want a refusal because it %s: %v", name, err)
			}
		})
	}
}

// What was altered on its way leads nowhere, least of all out of the tree.
func TestLoadOfNonsense(t *testing.T) {
	root := SavedNode{Type: typeDir}
	for name, saved := range map[string]*Saved{
		"nothing":          {},
		"no root":          {Msize: minMsize},
		"huge messages":    {Msize: maxMsize + 1, Nodes: []SavedNode{root}},
		"the way up":       {Msize: minMsize, Nodes: []SavedNode{root, {Name: "..", Type: typeDir}}},
		"a path":           {Msize: minMsize, Nodes: []SavedNode{root, {Name: "../../etc", Type: typeDir}}},
		"in itself":        {Msize: minMsize, Nodes: []SavedNode{root, {Name: "x", Parent: 1, Type: typeDir}}},
		"in nothing":       {Msize: minMsize, Nodes: []SavedNode{root, {Name: "x", Parent: -1, Type: typeDir}}},
		"a fid of nothing": {Msize: minMsize, Nodes: []SavedNode{root}, Fids: []SavedFid{{ID: 1, Node: 1}}},
	} {
		t.Run(name, func(t *testing.T) {
			tree, _ := serveDir(t, Options{})
			if err := tree.Load(saved); !errdefs.IsInvalidArgument(err) {
				t.Errorf("got %v", err)
			}
		})
	}
}
