package ninep

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
)

// Saved is a session between two requests: what its client knows the tree by. It
// is plain data, for a client that goes on with another server: a guest whose
// memory was saved while the tree was mounted.
type Saved struct {
	// Msize is the message size that was agreed on.
	Msize uint32 `json:"msize"`
	// Nodes are the files that the client refers to and those above them, each
	// after the one that it is in. The first one is the root.
	Nodes []SavedNode `json:"nodes"`
	Fids  []SavedFid  `json:"fids"`
}

// SavedNode is a file by its name.
type SavedNode struct {
	// Parent is the index of the directory that it is in.
	Parent int    `json:"parent"`
	Name   string `json:"name,omitempty"`
	// Type are the bits of st_mode.
	Type uint32 `json:"type"`
	// Version and Path are of the qid that the client knows.
	Version uint32 `json:"version,omitempty"`
	Path    uint64 `json:"path,omitempty"`
	// Size in bytes, and the time of the last change of the contents.
	Size      uint64 `json:"size,omitempty"`
	MtimeSec  int64  `json:"mtime_sec,omitempty"`
	MtimeNsec int64  `json:"mtime_nsec,omitempty"`
	// Gone: nothing is there under its name, or something else is.
	Gone bool `json:"gone,omitempty"`
}

// SavedFid is a handle of the client's.
type SavedFid struct {
	ID  uint32 `json:"id"`
	UID uint32 `json:"uid"`
	// Node is an index.
	Node int `json:"node"`
	// Open is true for an open file, and Flags what it was opened with, as the
	// protocol has them.
	Open  bool   `json:"open,omitempty"`
	Flags uint32 `json:"flags,omitempty"`
}

// onceFlags mean something at the first opening only.
const onceFlags = openExclusive | openTruncate

// Save describes the only session of the tree, which goes on undisturbed. It is
// errdefs.ErrUnavailable while a request is being served, and
// errdefs.ErrFailedPrecondition, with the name of the file, for what no other
// server could go on with: an open file that has no name any more, and locks that
// the host keeps. A file without a name that is not open is saved as one that is
// gone; what is in more directories than a path can have is refused as well.
func (t *Tree) Save() (*Saved, error) {
	t.mu.Lock()
	all := slices.Collect(maps.Keys(t.active))
	t.mu.Unlock()
	if len(all) != 1 {
		return nil, fmt.Errorf("save: the tree has %d sessions, not one: %w", len(all), errdefs.ErrFailedPrecondition)
	}
	return all[0].save()
}

// saver is a save under way.
type saver struct {
	*session
	saved Saved
	index map[*node]int
	// below are the nodes to save that are in one, retained all of them.
	below map[*node][]*node
}

func (s *session) save() (*Saved, error) {
	if n := s.inFlight.count(); n > 0 || s.msize == 0 {
		return nil, fmt.Errorf("save: %d requests are being served: %w", n, errdefs.ErrUnavailable)
	}
	s.fids.mu.Lock()
	fids := maps.Clone(s.fids.fids)
	s.fids.mu.Unlock()
	v := &saver{session: s, saved: Saved{Msize: s.msize}, index: map[*node]int{}, below: map[*node][]*node{}}
	defer v.release()
	v.gather(fids)
	if err := v.nodes(); err != nil {
		return nil, err
	}
	for id, f := range fids {
		saved, err := v.fid(id, f)
		if err != nil {
			return nil, err
		}
		v.saved.Fids = append(v.saved.Fids, saved)
	}
	return &v.saved, nil
}

// gather finds the files that fids stand for, and what is above them.
func (v *saver) gather(fids map[uint32]*fid) {
	known := map[*node]bool{v.tree.root: true}
	v.pins.mu.Lock()
	defer v.pins.mu.Unlock()
	for _, f := range fids {
		for n := f.current(); !known[n]; {
			known[n] = true
			parent := n.parent
			if n == v.tree.only {
				parent = v.tree.root
			}
			v.below[parent] = append(v.below[parent], n.retain())
			n = parent
		}
	}
}

func (v *saver) release() {
	for _, nodes := range v.below {
		for _, n := range nodes {
			n.release()
		}
	}
}

func (v *saver) fid(id uint32, f *fid) (SavedFid, error) {
	i := v.index[f.current()]
	s := SavedFid{ID: id, UID: f.uid, Node: i}
	refuse := func(what string) error {
		return fmt.Errorf("save: /%s %s: %w", v.saved.pathOf(i), what, errdefs.ErrFailedPrecondition)
	}
	v.locks.mu.Lock()
	locked := len(f.locks) > 0
	v.locks.mu.Unlock()
	switch {
	case locked:
		return s, refuse("is locked")
	case f.isXattr():
		return s, refuse("has an attribute that is being read or written")
	}
	if file, err := f.file(); err == nil {
		if v.saved.Nodes[i].Gone {
			return s, refuse("is open and has been removed, or is not where it was opened")
		}
		s.Open, s.Flags = true, file.flags&^onceFlags
	}
	return s, nil
}

// savedDir is a directory whose entries are being saved.
type savedDir struct {
	node *node
	// at is its index, fd its descriptor, pinned, or -1 if it is gone.
	at, fd int
	left   []*node
}

// nodes saves what gather has found, from the root down. Each file is looked for
// once, in a directory that is kept open: how many ways lead through one, and how
// long they are, is up to the client.
func (v *saver) nodes() error {
	var way []savedDir
	defer func() {
		for _, d := range way {
			v.leave(d)
		}
	}()
	enter := func(n *node, in savedDir) error {
		i, err := v.node(n, in)
		if err != nil || len(v.below[n]) == 0 {
			return err
		}
		d := savedDir{node: n, at: i, fd: -1, left: v.below[n]}
		if !v.saved.Nodes[i].Gone && !n.synthetic() {
			if len(way) == maxDepth {
				return fmt.Errorf("save: /%s is in more than %d directories: %w", v.saved.pathOf(i), maxDepth, errdefs.ErrFailedPrecondition)
			}
			if d.fd, err = v.pins.pin(n); err != nil {
				return fmt.Errorf("save: /%s: %w", v.saved.pathOf(i), err)
			}
		}
		way = append(way, d)
		return nil
	}
	err := enter(v.tree.root, savedDir{})
	for err == nil && len(way) > 0 {
		d := &way[len(way)-1]
		if len(d.left) == 0 {
			v.leave(*d)
			way = way[:len(way)-1]
			continue
		}
		n := d.left[0]
		d.left = d.left[1:]
		err = enter(n, *d)
	}
	return err
}

func (v *saver) leave(d savedDir) {
	if d.fd >= 0 {
		v.pins.unpin(d.node)
	}
}

// node adds n, which is in a directory, and returns its index.
func (v *saver) node(n *node, in savedDir) (int, error) {
	i, saved := len(v.saved.Nodes), SavedNode{Parent: in.at, Type: n.typ}
	var a attr
	var err error
	switch {
	case n == v.tree.root:
		a, err = v.stat(n)
	case n == v.tree.only:
		saved.Name = v.tree.onlyName
		a, err = v.stat(n)
	default:
		v.pins.mu.Lock()
		saved.Name, saved.Gone = n.name, n.unnamed || in.fd < 0
		v.pins.mu.Unlock()
		if !saved.Gone {
			var there bool
			a, there, err = v.look(n, in.fd, saved.Name)
			saved.Gone = !there
		}
	}
	if err == nil && !saved.Gone {
		q := v.qidOf(n, a)
		saved.Version, saved.Path = q.version, q.path
		if n.typ == typeRegular {
			saved.Size, saved.MtimeSec, saved.MtimeNsec = a.size, a.mtime.sec, a.mtime.nsec
		}
	}
	v.saved.Nodes = append(v.saved.Nodes, saved)
	v.index[n] = i
	if err != nil {
		err = fmt.Errorf("save: /%s: %w", v.saved.pathOf(i), err)
	}
	return i, err
}

// look says whether n is what its name leads to.
func (v *saver) look(n *node, dirFD int, name string) (a attr, there bool, err error) {
	fd, err := hostOpenAt(dirFD, name)
	if err != nil {
		if e := toErrno(err); e == linuxENOENT || e == linuxENOTDIR {
			err = nil
		}
		return a, false, err
	}
	defer closeFD(fd)
	a, err = hostStat(fd)
	return a, err == nil && v.pins.identityOf(a) == n.id && a.mode&typeMask == n.typ, err
}

// maxShown is about how many bytes of a path errors have.
const maxShown = 4096

// pathOf is the path of a node below the root, or the end of one that is too long
// to be shown.
func (s *Saved) pathOf(i int) string {
	var names []string
	for n := 0; i != 0; i = s.Nodes[i].Parent {
		if n > maxShown {
			names = append(names, "…")
			break
		}
		names = append(names, s.Nodes[i].Name)
		n += len(s.Nodes[i].Name) + 1
	}
	slices.Reverse(names)
	return strings.Join(names, "/")
}
